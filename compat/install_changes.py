"""Changes to a tree of files: planned first, shown or made after that.

Invariant: planning reads and changes nothing; a plan is made in order, and at no moment between
two of its steps is a name without its old or its new meaning. All paths are those inside of the
tree; where that is, only `Tree` knows.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field


class Conflict(Exception):
    """Something is in the way that we did not put there; the text says what, and what to do."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below `root`, which is "/" but for tests and for who builds images."""

    root: str = "/"

    def real(self, path: str) -> str:
        return path if self.root == "/" else os.path.join(self.root, path.lstrip("/"))

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.real(path))

    def names(self, path: str) -> list[str]:
        """What is in a directory; nothing if there is none."""
        try:
            return sorted(os.listdir(self.real(path)))
        except OSError:
            return []

    def link(self, path: str) -> str | None:
        """What a symbolic link says; None where there is none."""
        try:
            return os.readlink(self.real(path))
        except OSError:
            return None

    def data(self, path: str) -> bytes | None:
        """The bytes of a file that is no link; None where there is none."""
        if self.link(path) is not None:
            return None
        try:
            with open(self.real(path), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None


@dataclass(slots=True)
class Changes:
    """Steps in order; each has what it does and how that is shown."""

    tree: Tree
    steps: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def make_directory(self, path: str) -> None:
        self.steps.append(("mkdir", (path,)))

    def remove_directory(self, path: str) -> None:
        """If it is empty then."""
        self.steps.append(("rmdir", (path,)))

    def write(self, path: str, text: str) -> None:
        self.steps.append(("write", (path, text)))

    def keep(self, path: str, under: str) -> None:
        """Makes a second link that says the same as the one at `path`."""
        self.steps.append(("keep", (path, under)))

    def link(self, path: str, to: str) -> None:
        self.steps.append(("link", (path, to)))

    def restore(self, path: str, saved: str) -> None:
        """The reverse of `keep`."""
        self.steps.append(("restore", (path, saved)))

    def remove(self, path: str) -> None:
        self.steps.append(("remove", (path,)))

    # ---- shown

    def shown(self, diff: bool) -> Iterable[str]:
        """Lines that say what is to be done; with `diff`, how a written file changes."""
        for what, (path, *more) in self.steps:
            if what == "mkdir":
                yield f"make directory {path}"
            elif what == "rmdir":
                yield f"remove directory {path}, if nothing else is in it"
            elif what == "keep":
                link = self.tree.link(path)
                yield f"keep {path} -> {link} as {more[0]}"
            elif what == "link":
                yield f"link {path} -> {more[0]}"
            elif what == "restore":
                link = self.tree.link(more[0])
                yield f"restore {path} -> {link} from {more[0]}"
            elif what == "remove":
                yield f"remove {path}"
            else:
                yield f"write {path}"
                if diff:
                    yield from self._diff(path, more[0])

    def _diff(self, path: str, text: str) -> Iterable[str]:
        old = self.tree.data(path)
        before = (old or b"").decode(errors="replace").splitlines()
        label = path if old is not None else "/dev/null"
        yield from difflib.unified_diff(before, text.splitlines(), label, path, lineterm="")

    # ---- made

    def make(self) -> None:
        """Does it. OSError where the system refuses; steps before that stay done."""
        for what, (path, *more) in self.steps:
            real = self.tree.real(path)
            if what == "mkdir":
                os.mkdir(real)
                os.chmod(real, 0o755)  # whatever the umask
            elif what == "rmdir":
                try:
                    os.rmdir(real)
                except OSError:
                    pass  # in use by others now, or gone
            elif what == "keep":
                os.symlink(os.readlink(real), self.tree.real(more[0]))
            elif what == "link":
                os.symlink(more[0], real + ".new")
                os.replace(real + ".new", real)
            elif what == "restore":
                os.replace(self.tree.real(more[0]), real)
            elif what == "remove":
                os.unlink(real)
            else:
                _write(real, more[0])


def _write(path: str, text: str) -> None:
    # Never half of it, whatever happens to the machine.
    new = path + ".new"
    try:
        with open(new, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
