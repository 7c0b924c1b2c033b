"""`jitney endpoint`: opens, lists and closes more doors to a bus, and learns their policies.

Invariant: a policy file is checked here, with file and line, before the bus is asked. What was
learned is written, however the command ends, unless it was never begun.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..client import NoBus, standard_address
from .asking import Asker, Refused, ready, wait
from .policy import BadGrant, read

UNUSABLE = 2


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    options = _parser().parse_args(_cut(words))
    options.command = words[len(_cut(words)) + 1 :]
    try:
        address = options.address or standard_address(options.bus)
        status: int = options.run(options, address)
    except (Refused, NoBus, BadGrant) as reason:
        print(f"jitney endpoint: {reason}", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        sys.stdout = None
        return 1
    except OSError as error:
        print(f"jitney endpoint: {error.filename}: {error.strerror}", file=sys.stderr)
        return UNUSABLE
    return status


def _cut(words: Sequence[str]) -> Sequence[str]:
    """What stands before a command to run."""
    return words[: words.index("--")] if "--" in words else words


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="jitney endpoint",
        description="Opens another door to a running bus. Who comes in there sees, talks to and "
        "owns what its policy allows.",
        allow_abbrev=False,
    )
    where = argparse.ArgumentParser(add_help=False)
    which = where.add_mutually_exclusive_group()
    which.add_argument("--address", help="the bus that runs at this address")
    which.add_argument(
        "--bus", choices=("session", "system"), default="session", help="the one that runs here"
    )
    new = argparse.ArgumentParser(add_help=False)
    new.add_argument("--listen", metavar="PATH", required=True, help="its socket")
    new.add_argument(
        "--policy", metavar="FILE", help="what it allows; without, only the bus itself"
    )
    new.add_argument("--log", action="store_true", help="refusals go to the bus's log")
    new.add_argument(
        "--sloppy-names", action="store_true", help="all unique names show when they go"
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser("add", parents=[where, new], help="open one", allow_abbrev=False)
    add.add_argument("name", metavar="NAME")
    add.add_argument("--persistent", action="store_true", help="it stays when this command ends")
    add.add_argument("--no-filter", action="store_true", help="its clients may do what all may")
    add.add_argument(
        "--fd", type=int, default=-1, help="write a byte there, and end when it is closed"
    )
    add.set_defaults(run=_add)

    listing = commands.add_parser(
        "list", parents=[where], help="those there are", allow_abbrev=False
    )
    listing.add_argument("--json", action="store_true", help="all there is to know, as JSON")
    listing.set_defaults(run=_list)

    remove = commands.add_parser("remove", parents=[where], help="close one", allow_abbrev=False)
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)

    learn = commands.add_parser(
        "learn", parents=[where, new], allow_abbrev=False,
        usage="jitney endpoint learn [options] --listen PATH --write FILE [-- COMMAND ...]",
        help="open one that allows all, or as much as --policy does, and write down what was used",
    )  # fmt: skip
    learn.add_argument("--write", metavar="FILE", required=True, help="where to; - for here")
    learn.set_defaults(run=_learn)
    return made


def _lines(options: argparse.Namespace) -> list[str]:
    if options.policy is None:
        return []
    with open(options.policy, encoding="utf-8", errors="surrogateescape") as file:
        return read(file.read(), options.policy)


def _add(options: argparse.Namespace, address: str) -> int:
    lines = _lines(options)
    asker = Asker(address)
    found = asker.add(
        options.name,
        options.listen,
        lines,
        {
            "persistent": options.persistent,
            "filter": not options.no_filter,
            "log": options.log,
            "sloppy-names": options.sloppy_names,
        },
    )
    print(found, flush=True)
    if options.fd >= 0:
        ready(options.fd)
    if options.persistent:
        return 0
    try:
        if not wait([asker], options.fd):
            raise Refused(f"endpoint {options.name} is gone")
    except KeyboardInterrupt:
        pass
    asker.remove_all()
    return 0


def _list(options: argparse.Namespace, address: str) -> int:
    found = json.loads(Asker(address).ask("List")[0])
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    from ..look import figures

    rows = [
        [
            record["name"], record["creator"] or "-", str(record["clients"]),
            str(record["refused"]), _kind(record), record["address"],
        ]
        for record in found
    ]  # fmt: skip
    head = ("NAME", "CREATOR", "CLIENTS", "REFUSED", "POLICY", "ADDRESS")
    print(figures.table(head, rows, "CLIENTS REFUSED"))
    return 0


def _kind(record: dict[str, Any]) -> str:
    kind = f"{len(record['policy'])} lines" if record["filter"] else "open"
    return f"{kind}, learns" if record["learn"] else kind


def _remove(options: argparse.Namespace, address: str) -> int:
    Asker(address).ask("Remove", "s", options.name)
    return 0


class _Ended(Exception):
    pass


def _end(*_: object) -> NoReturn:
    raise _Ended


def _learn(options: argparse.Namespace, address: str) -> int:
    lines = _lines(options)
    asker = Asker(address)
    name = f"learning-{secrets.token_hex(4)}"
    filtering = options.policy is not None
    asked = {"learn": True, "filter": filtering, "log": options.log}
    found = asker.add(name, options.listen, lines, asked | {"sloppy-names": options.sloppy_names})
    status = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    try:
        if options.command:
            variable = f"DBUS_{options.bus.upper()}_BUS_ADDRESS"
            status = _run(options.command, {**os.environ, variable: found})
        else:
            print(found, flush=True)
            wait([asker])
    except _Ended:
        pass
    for number in (signal.SIGINT, signal.SIGTERM):
        # One was enough; what was learned is written now.
        signal.signal(number, signal.SIG_IGN)
    learned = asker.ask("Learned", "s", name)[0]
    asker.remove_all()
    text = "".join(f"{line}\n" for line in learned)
    if options.write == "-":
        sys.stdout.write(text)
    else:
        with open(options.write, "w", encoding="utf-8") as file:
            file.write(text)
    return status


def _run(command: Sequence[str], environ: dict[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        raise Refused(f"cannot run {command[0]}: {error.strerror}") from None
    try:
        status = process.wait()
    except _Ended:
        process.terminate()
        process.wait()
        raise
    return status if status >= 0 else 128 - status
