"""Asking a bus for endpoints, and staying as long as they are wanted.

Invariant: an endpoint that was asked for here ends at the latest with this process, unless it was
to be kept; `wait()` returns when nobody wants them any more, or says that they are gone.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping, Sequence
from typing import Any

from ..client import Client, NoBus
from ..errors import ACCESS_DENIED, UNKNOWN_INTERFACE, UNKNOWN_METHOD, DBusError

INTERFACE = b"org.jitney.Endpoints1"


class Refused(Exception):
    """There is no endpoint to be had; the text says why."""


class Asker:
    """One bus. Raises Refused wherever it cannot be asked, or will not."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.names: list[str] = []
        try:
            self.client = Client(address)
        except NoBus as reason:
            raise Refused(str(reason)) from None
        except DBusError as error:
            raise Refused(f"{address}: {error.text}") from None

    def ask(self, member: str, signature: str = "", *values: Any) -> list[Any]:
        try:
            return self.client.call(member, signature, *values, interface=INTERFACE)
        except NoBus as reason:
            raise Refused(str(reason)) from None
        except DBusError as error:
            text = error.text
            if error.name in (UNKNOWN_INTERFACE, UNKNOWN_METHOD):
                text = f"{self.address} is no jitney, or an old one: it opens no endpoints"
            elif error.name == ACCESS_DENIED and not text.startswith("Who came"):
                text += "\nOnly root and the bus's own user may open endpoints on it."
            raise Refused(text) from None

    def add(self, name: str, path: str, lines: Sequence[str], options: Mapping[str, bool]) -> str:
        """Opens one; its address."""
        given = {key: ("b", value) for key, value in options.items()}
        address: str = self.ask("Add", "ssasa{sv}", name, os.path.abspath(path), lines, given)[0]
        self.names.append(name)
        return address

    def remove_all(self) -> None:
        """The end of those that were opened here; of what is left of the bus nothing is asked."""
        for name in self.names:
            try:
                self.ask("Remove", "s", name)
            except Refused:
                break
        self.names.clear()

    def hear(self) -> None:
        """Something has come from the bus: takes note of endpoints that are no more.

        Raises Refused if the bus itself is no more."""
        try:
            msg = self.client.next_message()
        except NoBus as reason:
            raise Refused(str(reason)) from None
        if msg.interface == INTERFACE and msg.member == b"Removed":
            name = msg.body()[4:-1].decode()
            if name in self.names:
                self.names.remove(name)


def wait(askers: Sequence[Asker], fd: int = -1) -> bool:
    """Waits until the other end of `fd` (-1: there is none) is closed, and True; or, without one,
    until all endpoints are gone, and False."""
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, 0)
    open_ones = {asker.client.sock.fileno(): asker for asker in askers}
    for number in open_ones:
        poll.register(number, select.POLLIN)
    while fd >= 0 or any(asker.names for asker in open_ones.values()):
        for number, _ in poll.poll():
            if number == fd:
                return True
            asker = open_ones[number]
            try:
                asker.hear()
                while len(asker.client.unread) >= 16:
                    asker.hear()
            except Refused:
                poll.unregister(number)
                del open_ones[number]
    return False


def ready(fd: int) -> None:
    """Tells who waits at the other end of `fd` that all is open."""
    try:
        os.write(fd, b"x")
    except OSError as error:
        raise Refused(f"cannot write to descriptor {fd}: {error.strerror}") from None
