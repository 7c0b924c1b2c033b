"""A service that does what it is told, right or wrong: `python oddservice.py NAME WAY...`.

Invariant: it knows the bus only by DBUS_STARTER_ADDRESS, as any started service does, and ends
with its connection.

What it says of itself goes into the directory of JITNEY_TEST_NOTES, if that is set: a line in
`started` for each start.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rawclient import RawClient, Received

from jitney.compat import wire

MINE = b"jitney.test.Odd"


def note(what: str) -> None:
    folder = os.environ.get("JITNEY_TEST_NOTES")
    if folder:
        with (Path(folder) / "started").open("a") as file:
            file.write(what + "\n")


def claim(bus: RawClient, name: str) -> None:
    """Owns `name`; without a reply to wait for, since what comes first may be a call."""
    bus.driver(b"RequestName", "su", name, 4)


def serve(bus: RawClient) -> None:
    """Answers every call until the bus is gone: `Env` and `Files` about itself, else an echo."""
    while True:
        message = bus.receive(3600)
        if message is None:
            return
        if message.type == wire.CALL:
            answer(bus, message)
        message.close_fds()


def answer(bus: RawClient, message: Received) -> None:
    signature, values = message.signature, message.body
    if message.member == "Env":
        signature, values = "a{ss}", [dict(os.environ)]
    elif message.member == "Files":
        signature, values = "as", [[open_file(name) for name in os.listdir("/proc/self/fd")]]
    elif message.member == "Status":
        signature, values = "s", [Path("/proc/self/status").read_text()]
    elif message.member == "Take":
        signature, values = "s", [str(len(message.fds))]
    elif message.member == "Limits":
        signature, values = "s", [Path("/proc/self/limits").read_text()]
    bus.message(
        wire.RETURN,
        destination=(message.sender or "").encode(),
        reply_serial=message.serial,
        signature=signature,
        values=values,
    )


def open_file(name: str) -> str:
    try:
        return f"{name} {os.readlink('/proc/self/fd/' + name)}"
    except OSError:
        return ""


def main(name: str, way: str, *more: str) -> None:
    note(name)
    if way == "exit":
        os._exit(int(more[0]))
    if way == "signal":
        os.kill(os.getpid(), getattr(signal, more[0]))
    if way == "hang":
        time.sleep(3600)
    if way == "wait":  # for a file
        while not os.path.exists(more[0]):
            time.sleep(0.01)
    if way == "fork":
        status = int(more[0]) if more else 0
        if os.fork():
            os._exit(status)
        if status:
            time.sleep(3600)  # whoever claims its name now might be faster than that exit
    with RawClient(os.environ["DBUS_STARTER_ADDRESS"]) as bus:
        bus.hello()
        if way == "hello-exit":
            os._exit(int(more[0]))
        claim(bus, more[0] if way == "wrong-name" else name)
        serve(bus)


if __name__ == "__main__":
    main(*sys.argv[1:])
