"""Run one command with a session bus of its own: `python -m jitney.compat.run_session CMD...`.

Invariant: the bus lives exactly as long as the command. It is ended by its process id, whatever
way the command goes, and nothing of it is left in the environment of anybody else.

Made after dbus-run-session(1), for machines that have no D-Bus package at all. Exit status:
that of the command, 128 + n if signal n killed it, 127 if the bus or the command did not start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

FAILED = 127
# Left by a bus that the caller may live on; they would lead the command to it.
FOREIGN = (
    "DBUS_SESSION_BUS_PID",
    "DBUS_SESSION_BUS_WINDOWID",
    "DBUS_STARTER_ADDRESS",
    "DBUS_STARTER_BUS_TYPE",
)
DAEMON = (sys.executable, "-m", "jitney.compat")
GRACE = 5.0


@contextlib.contextmanager
def session_bus(daemon: Sequence[str] = DAEMON, *options: str) -> Iterator[str]:
    """Start a bus, yield its address, end it.

    `options` go before ours; `--session` is among them unless they name a configuration.
    Raises OSError where the daemon cannot be started or ends without printing an address."""
    if not any(option.startswith("--config-file") for option in options):
        options = (*options, "--session")
    inward, outward = os.pipe()
    try:
        with open(inward, encoding="utf-8") as addresses:
            try:
                bus = subprocess.Popen(
                    [*daemon, *options, "--nofork", f"--print-address={outward}"],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(outward,),
                    # Ctrl-C at the terminal is for the command; the bus is ended by us, after it.
                    process_group=0,
                )
            finally:
                os.close(outward)
            try:
                address = addresses.readline().strip()
                if not address:
                    raise OSError(f"the bus printed no address (exit status {bus.wait(GRACE)})")
                yield address
            finally:
                _end(bus)
    except subprocess.TimeoutExpired as error:
        raise OSError("the bus printed no address") from error


def _end(bus: subprocess.Popen[bytes]) -> None:
    bus.terminate()
    try:
        bus.wait(GRACE)
    except subprocess.TimeoutExpired:
        bus.kill()
        bus.wait()


def run(command: Sequence[str], address: str) -> int:
    """Run `command` on the bus at `address` and return its exit status (see the file's head)."""
    environment = {key: value for key, value in os.environ.items() if key not in FOREIGN}
    environment["DBUS_SESSION_BUS_ADDRESS"] = address
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGHUP: signal.signal(signal.SIGHUP, pass_on),
    }
    try:
        child = subprocess.Popen(command, env=environment)
        for number in early:
            child.send_signal(number)
        # The terminal sends these to the command, too, which is not to inherit that: outlive them.
        for number in (signal.SIGINT, signal.SIGQUIT):
            before[number] = signal.signal(number, signal.SIG_IGN)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jitney.compat.run_session",
        description="Run a command with a D-Bus session bus of its own.",
    )
    parser.add_argument("--config-file", metavar="FILE", help="instead of the session bus's own")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD...")
    arguments = parser.parse_args(argv)
    command = arguments.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        parser.error("no command given")
    options = [f"--config-file={arguments.config_file}"] if arguments.config_file else []
    try:
        with session_bus(DAEMON, *options) as address:
            return run(command, address)
    except OSError as error:
        print(f"run_session: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
