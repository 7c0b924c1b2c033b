"""Upgrades of a running bus, asked for by its clients; and builds that are no good."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rawclient import RawClient, Received

from jitney.compat import wire

UPGRADE = b"org.jitney.Upgrade1"


class NotUpgraded(Exception):
    """The bus says why."""


def upgrade(client: RawClient, program: str = "") -> dict[str, Any]:
    """What the new process says of itself. NotUpgraded if the old one goes on."""
    serial = client.driver(b"Upgrade", "s", program, interface=UPGRADE)
    reply = client.reply_to(serial, 60)
    if reply.type == wire.ERROR:
        raise NotUpgraded(reply.body[0])
    found: dict[str, Any] = json.loads(reply.body[0])
    return found


def joined(address: str, **more: Any) -> RawClient:
    """A client that has said Hello and has read all that comes of it."""
    client = RawClient(address, **more)
    client.hello()
    acquired = client.receive()
    assert acquired is not None
    assert acquired.member == "NameAcquired"
    return client


def settled(client: RawClient) -> list[Received]:
    """What has come for the client so far, to the last message."""
    serial = client.driver(b"GetId")
    found = []
    while True:
        message = client.receive()
        assert message is not None, "the bus closed the connection"
        if message.reply_serial == serial:
            return found
        found.append(message)


def build(folder: Path, change: str) -> str:
    """A program that is jitney-daemon, but for what `change` does to it first."""
    path = folder / f"build-{len(list(folder.iterdir()))}"
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys, time\n"
        "from jitney.compat.upgrade import form, giver, taker\n"
        "from jitney.compat import assembly, cli\n"
        f"{change}\n"
        "cli.main_entry()\n"
    )
    path.chmod(0o755)
    return str(path)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
