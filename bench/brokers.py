"""The brokers that can be compared, and how each is started.

Invariant: every start is a fresh process in a fresh folder, with the configuration of `config`
and no other. Which broker it is and which version is what it says itself.

`busd` reads no configuration file and was not at hand when this was written: untested.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from .config import Config
from .running import BrokerError, Running, end, spawn

__all__ = ["KNOWN", "Broker", "BrokerError", "Config", "Running", "find", "missing"]

KNOWN = ("jitney", "jitney-pure", "dbus-daemon", "dbus-broker", "busd")
"""Names that `find` knows by itself."""

_LAUNCHER = "dbus-broker-launch"
_MODULE = (sys.executable, "-m")
_PATIENCE = 10.0  # seconds for a --version
_LONGEST = 90  # bytes of a folder's name, so that a socket in it can be bound


@dataclass(frozen=True)
class Broker:
    """A broker that is installed here.

    `command`: its words; "{folder}" and "{config}" in them stand for the folder to listen in and
    for the configuration file."""

    name: str
    version: str
    command: tuple[str, ...]

    def start(self, config: Config | None = None, cpus: set[int] | None = None) -> Running:
        """A new process, which has answered a first client, on these CPUs (None: on all).

        BrokerError if it will not run."""
        options = (config or Config()).options
        if options and not self.name.startswith("jitney"):
            raise BrokerError(f"has no {' '.join(options)}")
        folder = Path(tempfile.mkdtemp(prefix="jitney-bench-", dir=_base()))
        try:
            file = (config or Config()).write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        words = [word.format(folder=folder, config=file) for word in (*self.command, *options)]
        return Running(self.name, words, folder, cpus, _environment())


def find(names: Sequence[str] = ()) -> list[Broker]:
    """The brokers of these names, or all known ones that can run here if there are none.

    NAME=COMMAND is any program that takes --config-file=FILE and --nofork as dbus-daemon does.
    LookupError, with the reason, for one that cannot be had."""
    if not names:
        return [_broker(name) for name in KNOWN if not missing(name)]
    return [_broker(name) for name in names]


@functools.cache
def missing(name: str) -> str:
    """Why the broker of this name cannot be had; "" if it can."""
    if "=" in name:
        words = shlex.split(name.partition("=")[2])
        return "" if words and shutil.which(words[0]) else f"no such program: {name}"
    if name not in KNOWN:
        return f"unknown; known are {', '.join(KNOWN)}, and NAME=COMMAND for any other"
    if name == "jitney":
        return "" if _compiled() else "jitney is installed as plain Python: see jitney-pure"
    if name == "jitney-pure":
        return ""
    programs = (name, _LAUNCHER) if name == "dbus-broker" else (name,)
    for program in programs:
        if not shutil.which(program):
            return f"{program} is not installed"
    if name == "dbus-broker":
        return _output([*_MODULE, "jitney.bench.activated", "--check"])
    return ""


def _broker(name: str) -> Broker:
    reason = missing(name)
    if reason:
        raise LookupError(f"{name}: {reason}")
    options = ("--config-file={config}", "--nofork")
    if "=" in name:
        name, _, text = name.partition("=")
        words = tuple(word.replace("{", "{{").replace("}", "}}") for word in shlex.split(text))
        version = _output([*shlex.split(text), "--version"])
        return Broker(name, version.partition("\n")[0], (*words, *options))
    if name in ("jitney", "jitney-pure"):
        from jitney.broker import __version__

        module = "jitney.compat" if name == "jitney" else "jitney.bench.pure"
        python = "Python {}.{}.{}".format(*sys.version_info)
        return Broker(name, f"{__version__}, {python}", (*_MODULE, module, *options))
    version = _number(_output([name, "--version"]))
    if name == "dbus-broker":
        words = (*_MODULE, "jitney.bench.activated", "{folder}", _LAUNCHER)
        return Broker(name, version, (*words, "--scope", "user", "--config-file", "{config}"))
    if name == "busd":
        return Broker(name, version, (name, "--address", "unix:path={folder}/bus"))
    return Broker(name, version, (name, *options))


def _number(text: str) -> str:
    """The version in what --version says."""
    found = re.search(r"\b\d+(\.\d+)*\b", text)
    return found.group() if found else text.partition("\n")[0]


def _output(command: Sequence[str]) -> str:
    """What a command writes to its standard output and error, if it ends soon."""
    with tempfile.TemporaryFile() as text:
        try:
            process = spawn(command, stdout=text.fileno(), stderr=text.fileno())
        except OSError as error:
            return str(error)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end(process)
        text.seek(0)
        return text.read().decode(errors="replace").strip()


def _compiled() -> bool:
    spec = importlib.util.find_spec("jitney.broker.mem")
    return spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))


def _base() -> str:
    """Where the folders are made."""
    base = tempfile.gettempdir()
    return base if len(os.fsencode(base)) + len("/jitney-bench-12345678") < _LONGEST else "/tmp"


def _environment() -> dict[str, str]:
    """Ours, without what would lead a broker or its services to another bus, or to systemd."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DBUS_") and name not in ("NOTIFY_SOCKET", "LISTEN_FDS")
    }
