"""`jitney install` and `jitney uninstall`: jitney as the machine's or a user's bus, and back.

Invariant: it only ever writes, links and removes files; it starts, stops and reloads nothing. A
bus cannot be exchanged while it runs, since every program on it loses its connection for good.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import install_lines, install_plan, install_units
from .install_changes import Changes, Conflict, Tree

SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")

_AFTER = {
    "system": """
Then, since a running bus cannot be exchanged:

  systemctl reboot

Not `systemctl daemon-reload` before that: dbus.service would be a unit that is not running, and
whatever needs it could start a second bus on the same socket. After the boot:

  systemctl status dbus""",
    "user": """
Then, since a running bus cannot be exchanged: log out of all sessions, so that the user's manager
ends, and in again (or reboot). Not `systemctl --user daemon-reload` before that: dbus.service would
be a unit that is not running, and whatever needs it could start a second bus on the same socket.
After the login:

  systemctl --user status dbus""",
}


def main(words: Sequence[str]) -> int:
    """Runs `jitney install` with these words; the exit status."""
    parser = _parser("install", "make jitney the system bus, or a user's session bus")
    parser.add_argument(
        "--daemon", metavar="PATH", help="jitney-daemon, if not the one beside this program"
    )
    parser.add_argument(
        "--no-systemd",
        nargs="?",
        const="guess",
        choices=("guess", *install_lines.KINDS),
        metavar="KIND",
        help="print lines to type on a machine without systemd, and write nothing: "
        + ", ".join(install_lines.KINDS),
    )
    given = parser.parse_args(words)
    tree = Tree(given.root)
    try:
        daemon = _daemon(tree, given.scope, given.daemon)
        if given.no_systemd or not any(tree.exists(file) for file in SYSTEMD):
            _print_lines(tree, given.no_systemd or "guess", given.scope, daemon)
            return 0
        changes = install_plan.install(_place(tree, given), daemon)
    except Conflict as conflict:
        return _complain("install", conflict)
    way_back = f"jitney uninstall --{given.scope}" + (" --global" if given.everybody else "")
    if not changes:
        print(f"jitney is installed as the {given.scope} bus; the way back: {way_back}")
        return 0
    return _make("install", changes, given, f"{_AFTER[given.scope]}\n\nThe way back: {way_back}")


def uninstall_main(words: Sequence[str]) -> int:
    """Runs `jitney uninstall` with these words; the exit status."""
    given = _parser("uninstall", "restore what was the bus before").parse_args(words)
    try:
        changes = install_plan.uninstall(_place(Tree(given.root), given))
    except Conflict as conflict:
        return _complain("uninstall", conflict)
    if not changes:
        print(f"jitney is not installed as the {given.scope} bus; nothing to do")
        return 0
    return _make("uninstall", changes, given, _AFTER[given.scope])


def _parser(name: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jitney {name}", description=what)
    scope = parser.add_mutually_exclusive_group(required=True)
    scope.add_argument(
        "--user", dest="scope", action="store_const", const="user", help="the session bus"
    )
    scope.add_argument(
        "--system", dest="scope", action="store_const", const="system", help="the system bus"
    )
    parser.add_argument(
        "--global",
        dest="everybody",
        action="store_true",
        help="with --user: for all users of the machine, in /etc/systemd/user",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would change, and change nothing"
    )
    parser.add_argument(
        "--root", metavar="DIR", default="/", help="the machine's files are below DIR"
    )
    return parser


def _place(tree: Tree, given: argparse.Namespace) -> install_plan.Place:
    if given.scope == "system":
        if given.everybody:
            raise Conflict("--global goes with --user; there is only one system bus")
        return install_plan.system_place(tree)
    if given.everybody:
        return install_plan.user_place(tree, None)
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if not os.path.isabs(home):
        raise Conflict(f"the configuration directory is not absolute: {home}")
    return install_plan.user_place(tree, home)


def _daemon(tree: Tree, scope: str, given: str | None) -> str:
    """The path of jitney-daemon. Raises Conflict where that cannot be right."""
    if given is not None:
        daemon, looked_at = given, [given]
    else:
        # This program is usually installed with it; if not, its interpreter may be.
        folders = [os.path.dirname(os.path.abspath(file)) for file in (sys.argv[0], sys.executable)]
        both = [f"{folder}/jitney-daemon" for folder in folders]
        daemon = next((file for file in both if tree.exists(file)), both[0])
        looked_at = [daemon, sys.executable, os.path.dirname(os.path.abspath(__file__))]
    if not os.path.isabs(daemon) or install_units.UNSAFE.search(daemon):
        raise Conflict(
            f"{daemon!r}: a unit needs the whole path, and no quotes or backslashes in it"
        )
    if not tree.exists(daemon):
        raise Conflict(f"{daemon} does not exist in {tree.root}; say where it is: --daemon=PATH")
    for path in looked_at if scope == "system" else []:
        doubt = install_plan.doubts(tree, path) if tree.exists(path) else ""
        if doubt:
            raise Conflict(
                f"{doubt}. The system bus is started as root: install jitney where only root can "
                "write and all can read, for example with python3 -m venv /opt/jitney"
            )
    return daemon


def _print_lines(tree: Tree, kind: str, scope: str, daemon: str) -> None:
    if kind == "guess":
        kind = install_lines.guess([file for file in install_lines.signs() if tree.exists(file)])
        others = ", ".join(other for other in install_lines.KINDS if other != kind)
        print(f"# No systemd: for {kind}. Others, with --no-systemd=KIND: {others}.")
    print(install_lines.lines(kind, scope, daemon), end="")


def _make(name: str, changes: Changes, given: argparse.Namespace, after: str) -> int:
    for line in changes.shown(diff=given.dry_run):
        print(line)
    if given.dry_run:
        print("\nNothing was changed (--dry-run). What comes after it:")
    else:
        try:
            changes.make()
        except OSError as error:
            print(f"jitney {name}: {error}; nothing after that was done", file=sys.stderr)
            return 1
    if given.scope == "user" and not given.everybody and os.geteuid() == 0:
        print("\nThis is for root's own sessions; --global is for all users.")
    print(after)
    return 0


def _complain(name: str, conflict: Conflict) -> int:
    print(f"jitney {name}: {conflict}", file=sys.stderr)
    return 1
