"""Asking: what all commands that look into a bus have in common.

Invariant: whatever keeps a bus from answering is a `NoAnswer` with a text for people; a command
ends with it on standard error and status 2. Users, commands and control groups are looked up here,
not by the bus: of a process that is gone, or that another pid namespace hides, they are unknown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .. import wording
from ..client import Client, NoBus, standard_address
from ..errors import ACCESS_DENIED, UNKNOWN_INTERFACE, UNKNOWN_METHOD, DBusError

Record = dict[str, Any]

INSPECT = "org.jitney.Inspect1"
UNUSABLE = 2


class NoAnswer(Exception):
    """The bus tells nothing; the text says why."""


def parser(command: str, about: str) -> argparse.ArgumentParser:
    """The options that say which bus is meant."""
    made = argparse.ArgumentParser(prog=f"jitney {command}", description=about, allow_abbrev=False)
    where = made.add_mutually_exclusive_group()
    where.add_argument("--address", help="ask the bus that runs at this address")
    where.add_argument(
        "--bus", choices=("session", "system"), default="session", help="the one that runs here"
    )
    return made


def add_json(made: argparse.ArgumentParser) -> None:
    made.add_argument("--json", action="store_true", help="all there is to know, as JSON")


class Bus:
    """A bus that is asked, from any thread. Raises NoAnswer wherever it cannot be asked, or will
    not tell."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.lock = threading.Lock()
        with _answered():
            self.client = Client(options.address or standard_address(options.bus))

    @property
    def unique_name(self) -> str:
        return self.client.unique_name

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> Record:
        return self._ask("GetStatus")

    def peer(self, name: str) -> Record:
        """One peer with its calls; "" for ourselves."""
        return self._ask("GetPeer", name)

    def _ask(self, member: str, *names: str) -> Record:
        with self.lock, _answered():
            (text,) = self.client.call(member, "s" * len(names), *names, interface=INSPECT.encode())
            found: Record = json.loads(text)
            return found

    def list(self, what: str) -> list[Record]:
        """All "Peers", "Users", "Names", "Matches", or what is "Pressed", page by page."""
        found: list[Record] = []
        cursor = ""
        while True:
            with self.lock, _answered():
                text, cursor = self.client.call(
                    f"{what}From", "s", cursor, interface=INSPECT.encode()
                )
                found += json.loads(text)
            if not cursor:
                return found


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except NoBus as reason:
        raise NoAnswer(str(reason)) from None
    except (OSError, ValueError) as error:
        raise NoAnswer(f"the bus does not answer as it should: {error}") from None
    except DBusError as error:
        text = error.text
        if error.name in (UNKNOWN_INTERFACE, UNKNOWN_METHOD):
            text = "this bus does not let anybody look: it is no jitney, or an old one"
        elif error.name == ACCESS_DENIED and text.startswith("Rejected"):
            text += (
                "\nThe bus's policy does not let you ask. This in its configuration would:\n"
                '  <allow send_destination="org.freedesktop.DBus"'
                f' send_interface="{INSPECT}"/>'
            )
        elif error.name == ACCESS_DENIED:
            text += "\nOnly root and the bus's own user may look at others."
        raise NoAnswer(text) from None


def run(command: str, options: argparse.Namespace, show: Callable[[Bus], None]) -> int:
    """Has `show` ask the bus and print; the exit status."""
    try:
        with Bus(options) as bus:
            show(bus)
            sys.stdout.flush()
    except NoAnswer as reason:
        print(f"jitney {command}: {reason}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        # Whoever reads has seen enough; Python would complain once more at the end.
        sys.stdout = None
        return 1
    return 0


def user(uid: int | None) -> str:
    return "anonymous" if uid is None else wording.user_name(uid)


def command(pid: int | None) -> str:
    """What the process calls itself."""
    return _proc(pid, "comm").strip()


def cgroup(pid: int | None) -> str:
    """Its control group, without what systemd's all have in common; "" if it is not known."""
    for line in _proc(pid, "cgroup").splitlines():
        number, _, rest = line.partition(":")
        if number == "0":
            return rest.partition(":")[2]
    return ""


def _proc(pid: int | None, what: str) -> str:
    if pid is None:
        return ""
    try:
        with open(f"/proc/{pid}/{what}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def identified(record: Record) -> Record:
    """The record with the names of its user, process and control group."""
    pid = record["pid"]
    more = {"user": user(record["uid"]), "command": command(pid), "cgroup": cgroup(pid)}
    return record | more
