"""`jitney record`: a bus's traffic in a file that Wireshark opens and `jitney replay` plays.

Invariant: the file is pcap, as from `jitney trace --format=pcap`: whole messages, when they passed,
and nothing else. File descriptors are not in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import filters
from .command import run

_DESCRIPTION = """\
Writes all messages that pass on a bus to a file (pcap, link type DBUS), until it is interrupted.
What messages say is in it: passwords, for example."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these words; the exit status."""
    parser = argparse.ArgumentParser(
        prog="jitney record", description=_DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("output", metavar="FILE")
    filters.add_arguments(parser)
    parser.add_argument("--count", type=int, metavar="N", help="end after so many messages")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="end after so long")
    words = parser.parse_args(argv)
    words.format = "pcap"
    words.payload, words.every, words.denied = 0, 1, False
    return run(words, "record")
