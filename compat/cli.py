"""The command line of `jitney-daemon`, which is dbus-daemon's.

Invariant: whatever dbus-daemon 1.14 accepts means the same here, whatever it refuses is refused
with the same words and status 1. (Hence no argparse: `--print-address` takes the next word as
its value only if that word is no option known to come first in the chain below.)

Standard descriptors may be closed when we start, so nothing here uses `sys.stdout`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

PROGRAM = "jitney-daemon"
COMPATIBLE = "1.14.10"
"""The version of dbus-daemon whose behaviour this is; tools look for it in --version."""

SESSION_CONFIG = ("/usr/share/dbus-1/session.conf", "/etc/dbus-1/session.conf")
SYSTEM_CONFIG = ("/usr/share/dbus-1/system.conf", "/etc/dbus-1/system.conf")

USAGE = (
    f"{PROGRAM} [--version] [--session] [--system] [--config-file=FILE]"
    " [--print-address[=DESCRIPTOR]] [--print-pid[=DESCRIPTOR]] [--introspect]"
    " [--address=ADDRESS] [--nopidfile] [--nosyslog] [--syslog] [--syslog-only]"
    " [--nofork] [--fork] [--systemd-activation]\n"
)

_MAX_INT = 0x7FFFFFFF


@dataclass(slots=True)
class Options:
    """What the command line asks for. None: what the configuration says."""

    config_file: str = ""
    address: str | None = None
    print_address: int | None = None
    """Descriptor for the address."""
    print_pid: int | None = None
    """Descriptor for the pid."""
    fork: bool | None = None
    syslog: bool | None = None
    syslog_only: bool = False
    """Keep off standard error whenever there is a system log to write to."""
    write_pidfile: bool = True
    systemd_activation: bool = False
    busy_poll: int = 0
    """Our own, so not in the usage: microseconds to look for messages before going to sleep."""
    metered: bool = True
    """Our own: whether messages are counted by peer, user and name."""
    log_json: bool = False
    """Our own: standard error gets JSON lines."""
    log_journal: bool = False
    """Our own: the system log is systemd-journald's, and gets fields."""
    metrics: list[str] = field(default_factory=list)
    """Our own: where these numbers can be read; see `places.check`."""
    kdbus_mount: str | None = None
    """Our own: where the bus is a bus of kdbus as well; see docs/kdbus.md."""
    kdbus_sockets: str | None = None
    """Our own: the same over sockets in a directory."""
    fd_store: bool = False
    """Our own: the service manager keeps the connections over a crash, see `upgrade.store`."""
    take_over: int | None = None
    """Our own: the descriptor by which a running bus hands over its state, see `upgrade`."""


class Exit(Exception):
    """The command line is answered by these texts and this exit status, no bus is run."""

    def __init__(self, status: int, out: str = "", err: str = "") -> None:
        super().__init__(status)
        self.status = status
        self.out = out
        self.err = err


_VALUES = {
    "config-file": "--{0} specified but configuration file {1} already requested\n",
    "address": "--{0} specified but address {1} already requested\n",
    "print-address": "--{0} specified but printing address to {1} already requested\n",
    "print-pid": "--{0} specified but printing pid to {1} already requested\n",
}
"""Options with a value, and the complaint if they get two."""


def parse(args: list[str]) -> Options:
    """Read the words behind the program's name. Raises Exit.

    As in dbus-daemon `--help`, `--version` and `--introspect` act when they are read: what
    stands behind them is not looked at.
    """
    options = Options()
    values = dict.fromkeys(_VALUES, "")
    wanted: set[str] = set()
    previous = ""
    for word in args:
        _read(word, previous, options, values, wanted)
        previous = word
    if not values["config-file"]:
        raise Exit(1, err="No configuration file specified.\n" + USAGE)
    options.config_file = values["config-file"]
    options.address = values["address"] or None
    if "print-address" in wanted:
        options.print_address = _descriptor(values["print-address"])
    if "print-pid" in wanted:
        options.print_pid = _descriptor(values["print-pid"])
    if options.fd_store and (options.kdbus_mount or options.kdbus_sockets):
        # Connections of kdbus have pools and ids that no store knows of.
        raise Exit(1, err="--fd-store cannot keep clients of kdbus: use it without --kdbus-...\n")
    return options


def _read(
    word: str, previous: str, options: Options, values: dict[str, str], wanted: set[str]
) -> None:
    """One word of the command line, in dbus-daemon's order of trying."""
    if word in ("--help", "-h", "-?"):
        raise Exit(1, err=USAGE)
    if word == "--version":
        raise Exit(0, out=_version())
    if word == "--introspect":
        raise Exit(0, out=_introspection())
    if word == "--nosyslog":
        options.syslog = False
    elif word == "--syslog":
        options.syslog = True
    elif word == "--syslog-only":
        options.syslog = options.syslog_only = True
    elif word == "--nofork":
        options.fork = False
    elif word == "--fork":
        options.fork = True
    elif word == "--systemd-activation":
        options.systemd_activation = True
    elif word.startswith("--busy-poll="):
        options.busy_poll = _microseconds(word.partition("=")[2])
    elif word == "--no-metrics":
        options.metered = False
    elif word == "--log-format=json":
        options.log_json = True
    elif word == "--log-format=journal":
        options.log_journal = True
    elif word.startswith("--metrics="):
        options.metrics.append(_place(word.partition("=")[2]))
    elif word.startswith("--kdbus-mount="):
        # Before a fork, after which the working directory is another one.
        options.kdbus_mount = os.path.abspath(word.partition("=")[2])
    elif word.startswith("--kdbus-sockets="):
        options.kdbus_sockets = os.path.abspath(word.partition("=")[2])
    elif word == "--fd-store":
        options.fd_store = True
    elif word.startswith("--take-over="):
        options.take_over = _descriptor(word.partition("=")[2])
    elif word == "--nopidfile":
        options.write_pidfile = False
    elif word in ("--system", "--session"):
        _set(values, "config-file", standard_config(word[2:]), word[2:])
    else:
        _read_value(word, previous, values, wanted)


def _read_value(word: str, previous: str, values: dict[str, str], wanted: set[str]) -> None:
    for name in _VALUES:
        option = f"--{name}"
        if word.startswith(option + "="):
            _set(values, name, word[len(option) + 1 :], name)
        elif previous == option:
            _set(values, name, word, name)
        elif word != option:
            continue
        wanted.add(name)
        return
    raise Exit(1, err=USAGE)


def _set(values: dict[str, str], name: str, value: str, option: str) -> None:
    if values[name]:
        raise Exit(1, err=_VALUES[name].format(option, values[name]))
    values[name] = value


def _descriptor(text: str) -> int:
    """A descriptor's number; standard output if none is given."""
    if not text:
        return 1
    if text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_INT:
        return int(text)
    raise Exit(1, err=f'Invalid file descriptor: "{text}"\n')


def _microseconds(text: str) -> int:
    """At most a second."""
    if text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= 1_000_000:
        return int(text)
    raise Exit(1, err=f'Invalid number of microseconds: "{text}"\n')


def _place(text: str) -> str:
    # Not loaded by a bus whose metrics nobody reads.
    from .places import check

    try:
        check(text)
    except ValueError as error:
        raise Exit(1, err=f"--metrics: {error}\n") from None
    return text


def standard_config(bus: str) -> str:
    """The configuration file of the session or the system bus.

    Where D-Bus is not installed, a session bus takes the file we bring along.
    """
    candidates = SYSTEM_CONFIG if bus == "system" else SESSION_CONFIG
    for path in candidates:
        if os.path.exists(path):
            return path
    if bus == "system":
        return candidates[0]
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "session.conf")


def _version() -> str:
    from jitney.broker import __version__

    return (
        f"D-Bus Message Bus Daemon {COMPATIBLE}\n"
        f"Jitney {__version__}, a replacement for dbus-daemon with the behaviour of the above\n"
    )


def _introspection() -> str:
    from .driver import introspection_xml

    return introspection_xml() + "\n"


def main(args: list[str]) -> int:
    """Run `jitney-daemon` with these words (the program's name not among them).

    Returns the exit status. With --fork it returns in the daemon; the process that was called
    has exited by then.
    """
    from . import process

    try:
        process.ensure_standard_fds(null_in=True)
        process.close_on_exec()
    except OSError as error:
        _write(2, f"{PROGRAM}: fatal error setting up standard fds: {error.strerror}\n")
        return 1
    try:
        options = parse(args)
    except Exit as answer:
        _write(1, answer.out)
        _write(2, answer.err)
        return answer.status
    from .daemon import Daemon

    return Daemon(options).run()


def main_entry() -> None:
    """What the console script calls."""
    sys.exit(main(sys.argv[1:]))


def _write(fd: int, text: str) -> None:
    data = os.fsencode(text)
    while data:
        try:
            data = data[os.write(fd, data) :]
        except OSError:
            return
