"""Floods: many numbered messages for somebody, and what they do to a bus's memory."""

from __future__ import annotations

from rawclient import RawClient

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
