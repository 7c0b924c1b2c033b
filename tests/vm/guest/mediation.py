"""Somebody in a domain of its own, for what security modules are asked about.

Invariant: a server ends with the `with` that started it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence

from helpers import ENVIRONMENT, run

SOMEONE = ("/opt/jitney/bin/python", "/run/vm/guest/someone.py")
SERVER = "org.jitney.Vm.Server"
RESERVED = "org.jitney.Vm.Reserved"
FREE = "org.jitney.Vm.Free"
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
OWNER = [1]
SERVED = ["served"]


def somebody(domain: Sequence[str], what: str, name: str) -> list[object]:
    """What the bus answered; `domain` is the command that enters it."""
    return list(json.loads(run(*domain, *SOMEONE, what, name)))


@contextlib.contextmanager
def serving(domain: Sequence[str], name: str = SERVER) -> Iterator[None]:
    server = subprocess.Popen(
        [*domain, *SOMEONE, "serve", name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    with server, server.stdin:
        line = server.stdout.readline()
        assert line, "the server ended"
        assert json.loads(line) == OWNER, line
        yield


def refused(answer: list[object], words: str) -> str:
    assert answer[0] == ACCESS_DENIED, answer
    assert words in str(answer[1]), answer
    return str(answer[1])
