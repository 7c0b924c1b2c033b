"""Somebody under a profile who has connections to buses, and does with them what it is told.

A line of JSON on standard input is a list: what to do, which connection, and arguments; a line of
JSON on standard output is what came of it.

Invariant: nothing happens between lines. Before an answer is given, the bus has answered whoever
did something, so that what it sent before has arrived.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rawclient import RawClient

from jitney.compat import wire

clients: dict[str, RawClient] = {}
heard: dict[str, list[Any]] = {}


def open_(key: str, address: str) -> list[Any]:
    client = clients[key] = RawClient(address, timeout=300)
    heard[key] = []
    answer = reply(key, client.driver(b"Hello"))
    client.unique_name = str(answer[0])
    return answer


def send(key: str, fields: dict[str, Any]) -> int:
    """Sends a message; its serial."""
    given = {k: v.encode() if isinstance(v, str) else v for k, v in fields.items()}
    given.setdefault("path", b"/vm")
    given.setdefault("interface", b"org.jitney.Vm")
    serial = clients[key].message(**given)
    settle(key)
    return serial


def driver(key: str, member: str, signature: str = "", *arguments: Any) -> list[Any]:
    return reply(key, clients[key].driver(member.encode(), signature, *arguments))


def monitor(key: str) -> list[Any]:
    interface = b"org.freedesktop.DBus.Monitoring"
    call = clients[key].driver(b"BecomeMonitor", "asu", [], 0, interface=interface)
    return reply(key, call)


def drain(key: str, serve: bool, syncs: bool = True) -> list[Any]:
    """All that has arrived; calls are answered if `serve` says so."""
    client = clients[key]
    if syncs:
        settle(key)
    else:
        until_quiet(key)
    found, heard[key] = heard[key], []
    for message in found:
        if serve and message[0] == wire.CALL:
            client.message(
                wire.RETURN, destination=message[1].encode(), reply_serial=message[6],
                signature="s", values=("served",),
            )  # fmt: skip
    if serve:
        settle(key)
    return found


def close(key: str) -> None:
    clients.pop(key).close()


def reply(key: str, serial: int) -> list[Any]:
    """What answers that call: the error's name and text, or the body."""
    while True:
        message = clients[key].receive()
        if message is None:
            return ["disconnected"]
        if message.reply_serial == serial and message.type in (wire.RETURN, wire.ERROR):
            return [message.error_name, *message.body] if message.error_name else message.body
        keep(key, message)


def settle(key: str) -> None:
    reply(key, clients[key].driver(b"GetId"))


def until_quiet(key: str) -> None:
    """A monitor cannot ask; what it gets is there when the others were answered."""
    while True:
        try:
            message = clients[key].receive(1)
        except TimeoutError:
            return
        if message is None:
            return
        keep(key, message)


def keep(key: str, message: Any) -> None:
    heard[key].append([
        message.type, message.sender, message.destination, message.member, message.error_name,
        message.reply_serial, message.serial, message.body,
    ])  # fmt: skip


DO = {
    "open": open_, "send": send, "driver": driver, "drain": drain, "close": close,
    "monitor": monitor,
}  # fmt: skip


def main() -> None:
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        print(json.dumps(DO[what](*arguments), default=list), flush=True)


if __name__ == "__main__":
    main()
