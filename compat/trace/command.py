"""`jitney trace`: what passes on a bus, as lines, JSON, pcap or a trace for Perfetto.

Invariant: records go to standard output (or --output), everything else to standard error; the
status is 0 when the trace ended as it was told to, 2 where there could be none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol, TextIO, cast

from ..client import NoBus, standard_address
from ..errors import DBusError
from . import filters
from .chrome import Chrome
from .filters import BadFilter
from .lines import JsonLines, Lines
from .pairing import Pairs
from .pcap import Pcap
from .records import JUDGED, PASSED, Record
from .session import Session

UNUSABLE = 2
WHOLE = 0xFFFFFFFF

_DESCRIPTION = """\
Shows the messages that pass on a bus: headers alone, unless --payload asks for more. Filters are
applied by the bus; replies to the calls that they find come along, with the time that they took.
Root and the user whom the bus runs as may do that."""


class Writer(Protocol):
    """What a format is."""

    def record(self, record: Record, call: Record | None) -> None: ...

    def lost(self, count: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these words; the exit status."""
    parser = argparse.ArgumentParser(
        prog="jitney trace", description=_DESCRIPTION, allow_abbrev=False
    )
    filters.add_arguments(parser)
    more = parser.add_argument_group("how")
    more.add_argument(
        "--denied", action="store_true", help="only what is refused, and by which rule"
    )
    more.add_argument("--every", type=int, default=1, metavar="N", help="one call or signal in N")
    more.add_argument(
        "--payload", type=int, nargs="?", const=WHOLE, default=0, metavar="BYTES",
        help="with the messages' arguments (or so many bytes of each message)",
    )  # fmt: skip
    more.add_argument("--format", choices=("lines", "jsonl", "pcap", "chrome"), default="lines")
    more.add_argument("--output", metavar="FILE", help="instead of standard output")
    more.add_argument("--count", type=int, metavar="N", help="end after so many records")
    more.add_argument("--duration", type=float, metavar="SECONDS", help="end after so long")
    words = parser.parse_args(argv)
    if words.every < 1 or words.payload < 0:
        parser.error("--every and --payload take numbers above 0")
    if words.format == "pcap" and words.denied:
        parser.error("--denied has nothing that --format=pcap could hold")
    return run(words, "trace")


def run(words: argparse.Namespace, command: str) -> int:
    """What `jitney trace` and `jitney record` have in common."""
    try:
        options = filters.options(words)
        payload = WHOLE if words.format == "pcap" else words.payload
        if payload:
            options["payload"] = ("u", min(payload, WHOLE))
        if words.every > 1:
            options["every"] = ("u", words.every)
        if words.denied:
            options["denied"] = ("b", True)
        session = Session(words.address or standard_address(words.bus), options)
    except (BadFilter, NoBus) as problem:
        return _fail(command, str(problem))
    except DBusError as error:
        return _fail(command, _reason(error))
    try:
        with _writer(words.format, words.output) as writer:
            return follow(session, writer, words.count, words.duration, command)
    except OSError as error:
        return _fail(command, f"{words.output}: {error.strerror}")
    finally:
        session.close()


def follow(
    session: Session, writer: Writer, count: int | None, seconds: float | None, command: str
) -> int:
    """Writes what comes, until the end; then says how much it was."""
    pairs = Pairs()
    seen = refused = 0
    # Asked to end by whatever signal, the file is to be whole.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        for lost, records in session.batches(seconds):
            if lost:
                writer.lost(lost)
            for record in records:
                writer.record(record, pairs.call_of(record))
                seen += record.kind == PASSED
                refused += record.kind == JUDGED
                if count is not None and seen + refused >= count:
                    raise KeyboardInterrupt
            writer.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # Whoever read along has seen enough; there is nobody to tell.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except NoBus as problem:
        status = _fail(command, str(problem))
    print(
        f"{seen} messages, {pairs.answered} calls answered, {len(pairs.open)} not, "
        f"{refused} refused, {session.lost} records lost",
        file=sys.stderr,
    )
    return status


@contextlib.contextmanager
def _writer(format: str, output: str | None) -> Iterator[Writer]:
    writer: Writer
    with contextlib.ExitStack() as stack:
        if format == "pcap":
            file: BinaryIO = sys.stdout.buffer
            if output is not None:
                file = stack.enter_context(open(output, "wb", opener=_private))
            writer = Pcap(file)
        else:
            out: TextIO = sys.stdout
            if output is not None:
                out = stack.enter_context(open(output, "w", opener=_private))
            kind = {"lines": Lines, "jsonl": JsonLines, "chrome": Chrome}[format]
            writer = cast(Writer, kind(out))
        # To whoever waits, a file with a head is a sign that the trace has begun.
        writer.flush()
        yield writer
        with contextlib.suppress(BrokenPipeError):
            writer.close()


def _private(path: str, flags: int) -> int:
    # What messages say is nobody else's business.
    return os.open(path, flags, 0o600)


def _reason(error: DBusError) -> str:
    if error.name.endswith((".UnknownInterface", ".UnknownMethod")):
        return "this bus is no jitney that can be traced; dbus-monitor may help"
    return error.text


def _fail(command: str, text: str) -> int:
    print(f"jitney {command}: {text}", file=sys.stderr)
    return UNUSABLE
