"""Scenarios about connections that see what is not for them: monitors and eavesdroppers.

Invariant: as in scenarios_names.
"""

from __future__ import annotations

import os
from typing import Any

from .script import MONITORING, PEER, Client, Stage, scenario


def traffic(stage: Stage) -> None:
    """Something of everything that can happen on a bus."""
    server = stage.client("server")
    server.driver("RequestName", "su", "traffic.server", 0)
    client = stage.client("client")
    client.driver("AddMatch", "s", "type='signal',interface='a.b'")
    call: dict[str, Any] = {"path": b"/a", "interface": b"a.b", "member": b"Call"}
    to_server: dict[str, Any] = {"destination": b"traffic.server", **call}
    serial = client.message(1, signature="s", values=["question"], **to_server)
    server.message(2, "reply", destination=client.unique, reply_serial=serial)
    serial = client.message(1, **to_server)
    server.message(3, "error", destination=client.unique, reply_serial=serial, error_name=b"a.b.E")
    server.message(2, "unrequested reply", destination=client.unique, reply_serial=serial)
    client.message(1, "call to nobody", destination=b"no.body", **call)
    client.message(1, "call to nobody, not to be started", destination=b"no.body", flags=2, **call)
    client.message(1, "call to nowhere", destination=None, **call)
    client.message(1, "ping nobody", destination=None, path=b"/", interface=PEER, member=b"Ping")
    client.message(4, "broadcast", destination=None, **call)
    server.message(4, "broadcast", destination=None, signature="s", values=["x"], **call)
    server.message(4, "directed signal", destination=client.unique, **call)
    client.driver("Nonsense")
    client.driver("GetNameOwner", "s", "no.body")
    client.driver("Ping", interface=PEER, flags=1)
    client.driver("RemoveMatch", "s", "member='never added'")
    client.driver("RequestName", "su", "traffic.server", 0)
    client.message(1, "spoofed", sender=b"org.evil", **to_server)
    client.message(1, "strange header", unknown=[(77, "s", b"x")], **to_server)
    client.message(1, "big-endian", big_endian=True, signature="su", values=["x", 1], **to_server)
    client.message(5, "unknown type", **to_server)
    client.message(4, "signal to the bus", **call)
    client.message(2, "reply to the bus", reply_serial=9)
    with open(os.devnull) as file:
        client.message(1, "with fd", fds=[file.fileno()], signature="h", values=[0], **to_server)
        deaf = stage.client("deaf", fds=False)
        deaf.driver("AddMatch", "s", "type='signal'")
        client.message(
            1, "fd for the deaf", destination=deaf.unique, fds=[file.fileno()], signature="h",
            values=[0], **call,
        )  # fmt: skip
        client.message(
            4, "fd for all", destination=None, fds=[file.fileno()], signature="h", values=[0],
            **call,
        )  # fmt: skip
    client.message(1, "left open", **to_server)
    rude = stage.client("rude", hello=False)
    rude.driver("GetId")
    rude.message(4, "rude broadcast", destination=None, **call)
    server.close()
    client.close()


@scenario()
def monitor_of_everything(stage: Stage) -> None:
    stage.client("monitor").become_monitor()
    traffic(stage)


@scenario()
def two_monitors(stage: Stage) -> None:
    stage.client("all").become_monitor("")
    stage.client("some").become_monitor("type='signal'", "type='error'", "member='Call'")
    traffic(stage)


@scenario()
def filtered_monitors(stage: Stage) -> None:
    filters = (
        "type='error'", "type='method_return'", "sender='org.freedesktop.DBus'", "arg0='x'",
        "destination='org.freedesktop.DBus'", "destination='traffic.server'", "member='Hello'",
        "destination='no.body'", "path='/a'", "interface='org.freedesktop.DBus'",
        "sender='traffic.server'", "eavesdrop='false',member='Call'", "arg1='traffic.server'",
    )  # fmt: skip
    for number, rule in enumerate(filters):
        stage.client(f"m{number}").become_monitor(rule)
    traffic(stage)


@scenario()
def becoming_a_monitor(stage: Stage) -> None:
    watcher = stage.client("watcher")
    watcher.driver("AddMatch", "s", "type='signal',sender='org.freedesktop.DBus'")
    heir = stage.client("heir")
    monitor = stage.client("monitor")
    for name in ("monitor.one", "monitor.two"):
        monitor.driver("RequestName", "su", name, 0)
        heir.driver("RequestName", "su", name, 0)
    heir.driver("RequestName", "su", "monitor.waits", 0)
    monitor.driver("RequestName", "su", "monitor.waits", 0)
    monitor.driver("AddMatch", "s", "type='signal'")
    serial = watcher.message(1, destination=b"monitor.one", path=b"/", member=b"Unanswered")
    monitor.driver("BecomeMonitor", "asu", [], 1, interface=MONITORING)
    monitor.driver("BecomeMonitor", "asu", ["", "nonsense"], 0, interface=MONITORING)
    monitor.driver("BecomeMonitor", "asu", [], 0, interface=MONITORING, path=b"/")
    monitor.become_monitor()
    watcher.driver("NameHasOwner", "s", monitor.raw.unique_name)
    watcher.driver("GetNameOwner", "s", "monitor.one")
    watcher.driver("ListQueuedOwners", "s", "monitor.waits")
    watcher.message(1, "call", destination=monitor.unique, path=b"/", member=b"M", flags=2)
    # A monitor that sends is a monitor no more.
    monitor.raw.message(2, destination=watcher.unique, reply_serial=serial)
    assert monitor.raw.receive() is not None
    while monitor.raw.receive():
        pass
    stage.settle("the monitor speaks and is thrown out")
    watcher.driver("GetId")


def eavesdropper(stage: Stage, name: str, rule: str) -> Client:
    client = stage.client(name)
    client.driver("AddMatch", "s", rule)
    return client


@scenario()
def eavesdroppers(stage: Stage) -> None:
    rules = (
        "eavesdrop='true'", "eavesdrop='true',type='method_call'", "eavesdrop='true',type='error'",
        "eavesdrop='true',type='method_return'", "eavesdrop='true',type='signal'",
        "eavesdrop='true',destination='traffic.server'", "destination='traffic.server'",
        "eavesdrop='true',destination='org.freedesktop.DBus'", "eavesdrop='true',arg0='question'",
        "eavesdrop='true',sender='traffic.server'", "sender='traffic.server'", "member='Call'",
        "eavesdrop='true',destination='no.body'", "type='method_call'",
    )  # fmt: skip
    for number, rule in enumerate(rules):
        eavesdropper(stage, f"e{number}", rule)
    traffic(stage)


@scenario()
def monitors_and_eavesdroppers(stage: Stage) -> None:
    eavesdropper(stage, "ear", "eavesdrop='true'")
    stage.client("monitor").become_monitor()
    traffic(stage)


@scenario(
    extra="""
  <policy context="mandatory">
    <deny send_interface="a.b" send_member="NotSent"/>
    <deny receive_interface="a.b" receive_member="NotReceived"/>
    <deny send_destination="forbidden.name"/>
    <deny send_destination="org.freedesktop.DBus" send_member="GetId" send_path="/forbidden"/>
  </policy>"""
)
def what_policy_denies(stage: Stage) -> None:
    monitor = stage.client("monitor")
    monitor.become_monitor()
    listener = stage.client("listener")
    listener.driver("AddMatch", "s", "interface='a.b'")
    listener.driver("RequestName", "su", "forbidden.name", 0)
    client = stage.client("client")
    for member in (b"NotSent", b"NotReceived", b"Fine"):
        given: dict[str, Any] = {"path": b"/", "interface": b"a.b", "member": member}
        client.message(1, "call", destination=listener.unique, **given)
        client.message(1, "quiet call", destination=listener.unique, flags=1, **given)
        client.message(4, "signal", destination=listener.unique, **given)
        client.message(4, "broadcast", destination=None, **given)
        client.message(1, "call by name", destination=b"forbidden.name", **given)
        client.message(1, "call to nobody", destination=b"no.body", **given)
    client.driver("GetId", path=b"/forbidden")
    client.driver("GetId", path=b"/forbidden", flags=1)
    client.driver("Nonsense")
