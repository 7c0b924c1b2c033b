"""Floods: many numbered messages for somebody, and what they do to a bus's memory."""

from __future__ import annotations

from collections.abc import Iterator

from rawclient import RawClient, build

CHUNK = 100_000
"""Bytes of payload in each message of a flood."""


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes."""
    with open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024
    raise ValueError(what)


def body(number: int) -> bytes:
    return number.to_bytes(4, "little") + bytes(CHUNK)


def messages(dest: str, count: int) -> Iterator[bytes]:
    """The calls of `flood`, as bytes."""
    fields = [(1, "o", "/"), (2, "s", "flood.Test"), (3, "s", "M"), (6, "s", dest)]
    for number in range(count):
        yield build(1, number + 1, fields, "ay", [body(number)], flags=1)


def until_held(sender: RawClient, other: RawClient, what: Iterator[bytes]) -> tuple[int, bytes]:
    """Sends until the bus does not read from the sender any more, though it does from others; how
    many went whole, and the rest of the next, nothing if all went."""
    whole = 0
    sender.sock.setblocking(False)
    try:
        for data in what:
            rest, refused = data, 0
            while rest:
                try:
                    rest = rest[sender.sock.send(rest) :]
                    refused = 0
                except BlockingIOError:
                    refused += 1
                    if refused > 5:
                        return whole, rest
                    # A round of the bus, in which it would have read from both.
                    other.reply_to(other.driver(b"GetId"))
            whole += 1
        return whole, b""
    finally:
        sender.sock.settimeout(sender.timeout)


def flood(client: RawClient, dest: str | None, count: int) -> None:
    """Calls (dest None: signals) numbered from 0, the number leading the body."""
    for number in range(count):
        client.message(
            1 if dest else 4,
            destination=dest.encode() if dest else None,
            path=b"/",
            interface=b"flood.Test",
            member=b"M",
            signature="ay",
            values=[body(number)],
            flags=1,
        )


def floods(client: RawClient, upto: int) -> list[int]:
    """Numbers of what arrives from a flood until number `upto` is there."""
    found: list[int] = []
    while not found or found[-1] != upto:
        message = client.receive()
        assert message is not None
        if message.member == "M":
            assert len(message.body[0]) == CHUNK + 4
            found.append(int.from_bytes(message.body[0][:4], "little"))
    return found
