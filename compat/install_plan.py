"""What `jitney install` and `jitney uninstall` change on a machine with systemd.

Invariant: nothing is overwritten or removed that `jitney install` did not write, but for a link
called dbus.service, which is kept and comes back; a plan for what is so already is empty.

What makes us the bus is what `systemctl enable` would make of `Alias=dbus.service`: a link of that
name to our unit, in the administrator's or user's own directory, which goes before all others. A
distribution's link there (dbus-broker's) is what is kept.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from . import install_policy as policy
from . import install_sandbox
from . import install_units as units
from .install_changes import Changes, Conflict, Tree

PACKAGES = {"system": "dbus-system-bus-common", "user": "dbus-user-session"}
"""Debian's packages that have the socket units."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where units go. `scope`: "system" or "user"; `folder`: where we put ours; `others`: where
    else systemd looks."""

    tree: Tree
    scope: str
    folder: str
    others: tuple[str, ...]

    @property
    def unit(self) -> str:
        return f"{self.folder}/{units.UNIT}"

    @property
    def alias(self) -> str:
        return f"{self.folder}/{units.ALIAS}"

    @property
    def saved(self) -> str:
        return f"{self.folder}/{units.SAVED}"

    def is_our_alias(self) -> bool:
        return self.tree.link(self.alias) in (self.unit, units.UNIT, f"./{units.UNIT}")


def system_place(tree: Tree) -> Place:
    """For the system bus."""
    return Place(
        tree, "system", "/etc/systemd/system", ("/usr/lib/systemd/system", "/lib/systemd/system")
    )


def user_place(tree: Tree, config_home: str | None) -> Place:
    """For the buses of a user with this configuration directory; None: of all users."""
    others = ("/etc/systemd/user", "/usr/lib/systemd/user", "/lib/systemd/user")
    folder = f"{config_home}/systemd/user" if config_home is not None else others[0]
    return Place(tree, "user", folder, others)


def install(place: Place, daemon: str) -> Changes:
    """The way to a bus that is the jitney-daemon at that path. Raises Conflict."""
    tree = place.tree
    changes = Changes(tree)
    if not any(tree.exists(f"{folder}/dbus.socket") for folder in (place.folder, *place.others)):
        raise Conflict(
            f"there is no dbus.socket in {', '.join(place.others)}; on Debian it is in the package "
            f"{PACKAGES[place.scope]}. Without it nothing would start the bus"
        )
    for file in _drop_ins(place):
        if b"ExecStart=" in (tree.data(file) or b""):
            raise Conflict(
                f"{file} says what is started as dbus.service, and would for ours; move it away"
            )
    old = tree.data(place.unit)
    if tree.exists(place.unit) and (old is None or not units.is_ours(old)):
        raise Conflict(f"{place.unit} was not written by `jitney install`; move it away")
    missing = list(_missing(tree, place.folder))
    if place.scope == "system":
        missing += [folder for folder in _missing(tree, policy.FOLDER) if folder not in missing]
    for folder in missing:
        changes.make_directory(folder)
    noted = units.made_directories(old) if old is not None else []
    sandbox = install_sandbox.lines(tree, daemon) if place.scope == "system" else ""
    text = units.text(place.scope, daemon, [*noted, *missing], sandbox)
    if old != text.encode(errors="surrogateescape"):
        changes.write(place.unit, text)
    if place.scope == "system":
        _write_policy(tree, changes)
    if not place.is_our_alias():
        _take_alias(place, changes)
    return changes


def _write_policy(tree: Tree, changes: Changes) -> None:
    old = tree.data(policy.PATH)
    if tree.exists(policy.PATH) and (old is None or not policy.is_ours(old)):
        raise Conflict(f"{policy.PATH} was not written by `jitney install`; move it away")
    if old != policy.TEXT.encode():
        changes.write(policy.PATH, policy.TEXT)


def _take_alias(place: Place, changes: Changes) -> None:
    link = place.tree.link(place.alias)
    if link == "/dev/null":
        raise Conflict(
            f"{place.alias} is masked (a link to /dev/null): somebody wanted no bus here; "
            "`systemctl unmask dbus.service` takes that back"
        )
    if link is None and place.tree.exists(place.alias):
        raise Conflict(f"{place.alias} was not written by `jitney install`; move it away")
    if place.tree.exists(place.saved):
        # Of an installation that was since replaced by another bus, by hand.
        changes.remove(place.saved)
    if link is not None:
        changes.keep(place.alias, place.saved)
    changes.link(place.alias, place.unit)


def uninstall(place: Place) -> Changes:
    """The way back. Raises Conflict."""
    tree = place.tree
    changes = Changes(tree)
    data = tree.data(place.unit)
    if tree.exists(place.unit) and (data is None or not units.is_ours(data)):
        raise Conflict(f"{place.unit} was not written by `jitney install`; it stays")
    saved = tree.link(place.saved) is not None
    # First the name, then what it meant: there is always a bus.
    if place.is_our_alias():
        if saved:
            changes.restore(place.alias, place.saved)
        else:
            changes.remove(place.alias)
    elif saved:
        changes.remove(place.saved)
    if place.scope == "system" and policy.is_ours(tree.data(policy.PATH) or b""):
        changes.remove(policy.PATH)
    if data is not None:
        changes.remove(place.unit)
        for folder in reversed(units.made_directories(data)):
            if any(f"{ours}/".startswith(f"{folder}/") for ours in (place.folder, policy.FOLDER)):
                changes.remove_directory(folder)
    return changes


def _drop_ins(place: Place) -> Iterable[str]:
    """Additions to dbus.service; what it is a link to takes them as its own."""
    for folder in (place.folder, *place.others):
        names = place.tree.names(f"{folder}/{units.ALIAS}.d")
        yield from (f"{folder}/{units.ALIAS}.d/{name}" for name in names if name.endswith(".conf"))


def _missing(tree: Tree, folder: str) -> Iterable[str]:
    """The directories on the way to `folder` that do not exist, outermost first."""
    if folder != "/" and not tree.exists(folder):
        yield from _missing(tree, os.path.dirname(folder))
        yield folder


def doubts(tree: Tree, path: str) -> str:
    """Why root must not run what is at `path` as the system bus; empty if it may.

    The bus starts as root and goes on as another user, who must be able to read all of it."""
    real = tree.real(path)
    if tree.root == "/":
        real = os.path.realpath(real)
    first = real
    top = os.path.realpath(tree.root)
    trusted = {0, os.stat(top).st_uid}
    while True:
        info = os.stat(real)
        shown = real if tree.root == "/" else "/" + os.path.relpath(real, tree.root)
        folder = stat.S_ISDIR(info.st_mode)
        if info.st_uid not in trusted:
            return f"{shown} belongs to the user {info.st_uid}, who could replace it"
        if info.st_mode & 0o022 and not (folder and info.st_mode & stat.S_ISVTX):
            return f"{shown} can be written by others than root"
        if not info.st_mode & 0o001 and (folder or real == first):
            return f"{shown} is closed to the user that the system bus runs as"
        if os.path.realpath(real) == top or real == "/":
            return ""
        real = os.path.dirname(real)
