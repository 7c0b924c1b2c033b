"""`jitney proxy`: endpoints with xdg-dbus-proxy's command line, for those who call that program.

Invariant: what is asked for of a jitney behaves as the proxy would, without a process in between; a
bus that opens no endpoints is an error, since this process proxies nothing. When a byte has been
written to --fd, all sockets are open; when it is closed, they are gone before the process is.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence

from jitney.broker import __version__

from .asking import Asker, Refused, ready, wait
from .policy import BadGrant, parse

USAGE = """\
usage: jitney proxy [OPTIONS...] [ADDRESS PATH [OPTIONS...] ...]

The command line of xdg-dbus-proxy(1). ADDRESS is that of a jitney.

  --help                   print this
  --version                print the version
  --fd=FD                  write a byte to FD when all is open, end when it is closed
  --args=FD                read more arguments from FD, each with a NUL byte behind it

behind an ADDRESS:

  --filter                 the policy counts; without it everything passes
  --log                    the bus logs what it refuses
  --sloppy-names           all unique names show when they come and go
  --see=NAME               NAME is visible
  --talk=NAME              NAME may be talked to
  --own=NAME               NAME may be owned
  --call=NAME=RULE         such calls to NAME may be made
  --broadcast=NAME=RULE    such broadcasts of NAME may be received
"""

_GRANTS = ("see", "talk", "own", "call", "broadcast")
_FLAGS = ("filter", "log", "sloppy-names")


class Wrong(Exception):
    """The command line is no good; the text says why."""


class Asked(Exception):
    """Something was to be printed instead."""


class Proxy:
    """One ADDRESS PATH, with what was said of it."""

    def __init__(self, address: str, path: str) -> None:
        self.address = address
        self.path = path
        self.lines: list[str] = []
        self.options = {"filter": False}


class Line:
    """A command line: `proxies`, and the descriptor to tell and to watch, -1 for none."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.proxies: list[Proxy] = []
        self.fd = -1
        place = 0
        while place < len(self.words):
            word = self.words[place]
            place += 1
            if word.startswith("-"):
                self._option(word, place)
                continue
            if place == len(self.words) or self.words[place].startswith("-"):
                raise Wrong("No socket path given")
            self.proxies.append(Proxy(word, self.words[place]))
            place += 1
        if not self.proxies:
            raise Wrong("No proxies specified")

    def _option(self, word: str, place: int) -> None:
        key, equals, value = word.removeprefix("--").partition("=")
        if word == "--help":
            raise Asked(USAGE)
        if word == "--version":
            raise Asked(f"jitney proxy {__version__}\n")
        if key == "fd" and equals:
            self.fd = _descriptor(value)
        elif key == "args" and equals:
            self.words[place:place] = _arguments(_descriptor(value))
        elif self.proxies and key in _GRANTS and equals:
            line = f"{key} {value}"
            try:
                parse(line)
            except BadGrant as reason:
                raise Wrong(str(reason)) from None
            self.proxies[-1].lines.append(line)
        elif self.proxies and key in _FLAGS and not equals:
            self.proxies[-1].options[key] = True
        else:
            raise Wrong(f"Unknown argument {word}")


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise Wrong(f"'{text}' is no file descriptor")
    return int(text)


def _arguments(fd: int) -> list[str]:
    parts = []
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError as error:
        raise Wrong(f"cannot read arguments from descriptor {fd}: {error.strerror}") from None
    words = os.fsdecode(b"".join(parts)).split("\0")
    return words if words[-1] else words[:-1]


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    if not words:
        print(USAGE, end="", file=sys.stderr)
        return 1
    try:
        line = Line(words)
        return _serve(line)
    except Asked as text:
        print(text, end="")
        sys.exit(0)
    except (Wrong, Refused) as reason:
        print(f"jitney proxy: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _serve(line: Line) -> int:
    askers = []
    for proxy in line.proxies:
        asker = Asker(proxy.address)
        askers.append(asker)
        name = f"proxy-{os.getpid()}-{secrets.token_hex(4)}"
        asker.add(name, proxy.path, proxy.lines, proxy.options)
    if line.fd >= 0:
        ready(line.fd)
    wanted = wait(askers, line.fd)
    for asker in askers:
        asker.remove_all()
    if not wanted:
        raise Refused("the bus has closed the endpoints, or is gone")
    return 0
