"""Collect: real traffic as inputs of the targets.

    python -m fuzz.collect FOLDER      writes FOLDER/TARGET/... for several targets

Invariant: nothing is made up here. Programs that are installed talk to a bus through a socket that
writes down what they say, byte for byte; `jitney record` and `busctl capture` look on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import buses

from jitney.broker.message import Message
from jitney.kdbus import gvariant, transcode

LONGEST = 4096

_BUS = "org.freedesktop.DBus"
_GLIB = """
import gi
gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib
bus = Gio.bus_get_sync(Gio.BusType.SESSION)
bus.signal_subscribe(None, "com.example.I", "S", "/a", "x", 0, lambda *a: None)
node = Gio.DBusNodeInfo.new_for_xml('<node><interface name="a.b"><method name="M">'
    '<arg type="a{sv}" direction="in"/><arg type="(iasd)" direction="out"/>'
    '</method></interface></node>')
result = GLib.Variant("((iasd))", ((1, ["x"], 2.5),))
bus.register_object("/o", node.interfaces[0],
    lambda c, s, o, i, m, p, call: call.return_value(result), None, None)
loop = GLib.MainLoop()
def acquired(bus, name):
    bus.call(name, "/o", "a.b", "M", GLib.Variant("(a{sv})", ({"k": GLib.Variant("ay", b"xy")},)),
        None, 0, 5000, None, lambda b, r: (b.call_finish(r), loop.quit()))
    bus.emit_signal(None, "/a", "com.example.I", "S", GLib.Variant("(sou)", ("x", "/b", 7)))
Gio.bus_own_name_on_connection(bus, "com.example.GLib", 0, acquired, None)
GLib.timeout_add(3000, loop.quit)
loop.run()
"""
_PYTHON = """
import dbus, dbus.service, dbus.mainloop.glib, threading
from gi.repository import GLib
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SessionBus()
name = dbus.service.BusName("com.example.Python", bus)
class O(dbus.service.Object):
    @dbus.service.method("a.b", in_signature="a{s(ib)}aav", out_signature="v")
    def M(self, a, b):
        return a
    @dbus.service.signal("a.b", signature="xtd")
    def S(self, a, b, c):
        pass
o = O(bus, "/o")
o.S(-1, 2, 0.5)
bus.add_signal_receiver(print, "S", "a.b", "com.example.Python", "/o", arg0="y")
loop = GLib.MainLoop()
bus.call_async("com.example.Python", "/o", "a.b", "M", "a{s(ib)}aav",
    ({"k": (1, True)}, [[dbus.String("z"), dbus.UInt64(3)]]), lambda *a: loop.quit(), print)
bus.call_async("com.example.Python", "/o", "org.freedesktop.DBus.Introspectable", "Introspect",
    "", (), print, print)
GLib.timeout_add(3000, loop.quit)
loop.run()
"""
COMMANDS = [
    ["busctl", "--user", "list"],
    ["busctl", "--user", "status", _BUS],
    ["busctl", "--user", "introspect", _BUS, "/org/freedesktop/DBus"],
    ["busctl", "--user", "call", _BUS, "/org/freedesktop/DBus", _BUS, "GetNameOwner", "s", _BUS],
    ["busctl", "--user", "emit", "/a", "a.b", "S", "a{sv}", "1", "k", "u", "7"],
    ["gdbus", "introspect", "--session", "--dest", _BUS, "--object-path", "/org/freedesktop/DBus"],
    ["gdbus", "emit", "--session", "--object-path", "/a", "--signal", "a.b.S", "['x']", "(1,)"],
    ["gdbus", "wait", "--session", "--timeout", "1", "com.example.None"],
    ["dbus-send", "--session", "--print-reply", f"--dest={_BUS}", "/", f"{_BUS}.ListNames"],
    ["dbus-send", "--session", "/a", "a.b.S", "dict:string:int32:a,1,b,2", "array:byte:1,2"],
    ["dbus-test-tool", "spam", "--session", "--count=3", "--dest=com.example.Echo"],
    ["dbus-update-activation-environment", "X=1"],
    ["/usr/bin/python3", "-c", _GLIB],
    ["/usr/bin/python3", "-c", _PYTHON],
]  # fmt: skip
BESIDE = [
    ["dbus-monitor", "--session", "type='signal',interface='a.b'", "arg0namespace='com.example'"],
    ["dbus-test-tool", "echo", "--session", "--name=com.example.Echo"],
]


class Tap:
    """A socket in front of a bus; `said` is what each client said."""

    def __init__(self, path: Path, bus: str) -> None:
        self.bus = bus
        self.said: list[bytearray] = []
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(path))
        self.sock.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.sock.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.bus)
            said = bytearray()
            self.said.append(said)
            for pair in ((client, server, said), (server, client, bytearray())):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, said: bytearray) -> None:
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(source, 65536, 16)
                if not data:
                    break
                said += data
                socket.send_fds(sink, [data], fds)
                for fd in fds:
                    os.close(fd)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def messages(stream: bytes) -> list[bytes]:
    """The messages behind the last BEGIN."""
    found = []
    at = stream.find(b"BEGIN\r\n") + 7
    while at + 16 <= len(stream):
        order = "big" if stream[at : at + 1] == b"B" else "little"
        body, fields = (
            int.from_bytes(stream[i : i + 4], order)  # type: ignore[arg-type]
            for i in (at + 4, at + 12)
        )
        size = (16 + fields + 7 & ~7) + body
        found.append(stream[at : at + size])
        at += size
    return found


def sort(streams: list[bytes], captures: list[bytes]) -> dict[str, set[bytes]]:
    """Inputs by target."""
    found: dict[str, set[bytes]] = {}

    def add(name: str, data: bytes) -> None:
        if len(data) <= LONGEST:
            found.setdefault(name, set()).add(data)

    for stream in streams:
        end = stream.find(b"BEGIN\r\n") + 7
        add("stream", b"\0" + stream[:LONGEST])
        add("sasl", b"\2" + stream[:end] + b"l\1")
        for data in messages(stream):
            msg = Message()
            if not msg.load(data):
                continue
            add("message", data)
            add("classic2", data)
            add("values", msg.signature + b"\0\0" + msg.body())
            there = transcode.from_classic(msg)
            add("dbus2", b"".join(transcode.lay(there)))
            form = gvariant.from_classic(msg.signature, msg.body(), msg.big_endian, False)
            add("gvariant", b"\0" + msg.signature + b"\0" + form)
            if msg.member in (b"AddMatch", b"RemoveMatch"):
                add("matchrule", msg.string_arg(0) or b"")
    for data in captures:
        for cut in (300, 1500, LONGEST):
            add("recording", data[:cut])
    return found


def main(folder: Path) -> None:
    with buses.running(buses.jitney_command()) as bus:
        tap = Tap(bus.directory / "tap", str(bus.directory / "bus"))
        env = {
            **os.environ,
            "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus.directory / 'tap'}",
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus.directory / 'tap'}",
        }
        pcap = bus.directory / "session.pcap"
        beside = [*BESIDE, [sys.executable, "-m", "jitney.compat.command", "record", str(pcap)]]
        beside[-1][1:3] = ["-c", "from jitney.compat.command import main_entry; main_entry()"]
        looking = [
            subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for words in beside
            if shutil.which(words[0])
        ]
        capture = subprocess.Popen(["busctl", "--user", "capture"], env=env, stdout=subprocess.PIPE)
        assert capture.stdout is not None
        first = capture.stdout.read1(65536)  # type: ignore[attr-defined]
        for words in COMMANDS:
            if shutil.which(words[0]):
                subprocess.run(words, env=env, timeout=20, check=False, stdout=subprocess.DEVNULL)
        for process in [*looking, capture]:
            process.send_signal(signal.SIGINT)
        captures = [first + capture.stdout.read()]
        for process in [*looking, capture]:
            process.wait(10)
        captures.append(pcap.read_bytes())
        found = sort([bytes(said) for said in tap.said], captures)
    for name, inputs in found.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for data in inputs:
            file = hashlib.sha1(data, usedforsecurity=False).hexdigest()
            (folder / name / file).write_bytes(data)
        print(f"{name}: {len(inputs)} inputs")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
