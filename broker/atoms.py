# cython: infer_types=True
"""Atoms: each string that somebody registered, held once, known by a small number.

Invariant: only what a peer was charged for (a name, a match rule, a policy) makes an atom;
looking a message's strings up never does. So a flood of unheard-of names costs no memory,
and a message's interface or member that nobody registered is known at once to match nothing.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .mem import Map64

if not cython.compiled:
    from .mem import hash64, of_bytes, same


@cython.freelist(64)
@cython.cclass
class Atom:
    """A registered string. `name` is the entry of the name registry with this text, if any;
    `watched` counts match rules that name it as their sender."""

    def __init__(self) -> None:
        self.text = b""
        self.number = 0
        self.key = 0
        self.refs = 0
        self.watched = 0
        self.next: Atom | None = None
        self.name: Any | None = None

    def __repr__(self) -> str:
        return f"<Atom {self.number} {self.text!r} refs={self.refs}>"


class Atoms:
    """The table of atoms. Numbers start at 1 and are not used again."""

    def __init__(self) -> None:
        self.table = Map64()
        self.last = 0
        self.count = 0
        self.stamp = 0

    def __len__(self) -> int:
        return self.count

    def find(self, p, off: int, n: int) -> Atom | None:
        """The atom of this string, or None if nobody registered it."""
        atom = self.table.get(hash64(p, off, n))
        while atom is not None:
            if same(p, off, n, atom.text):
                return atom
            atom = atom.next
        return None

    def lookup(self, text: bytes) -> Atom | None:
        """find() for Python callers."""
        return self.find(of_bytes(text), 0, len(text))

    def intern(self, text: bytes) -> Atom:
        """The atom of `text`, made if need be; the caller owes a `release()`."""
        p = of_bytes(text)
        n = len(text)
        key = hash64(p, 0, n)
        first = self.table.get(key)
        atom = first
        while atom is not None:
            if same(p, 0, n, atom.text):
                atom.refs += 1
                return atom
            atom = atom.next
        self.last += 1
        atom = Atom()
        atom.text = text
        atom.number = self.last
        atom.key = key
        atom.refs = 1
        atom.next = first
        self.table.put(key, atom)
        self.count += 1
        return atom

    def release(self, atom: Atom) -> None:
        """Gives back one `intern()`."""
        atom.refs -= 1
        if atom.refs:
            return
        first = self.table.get(atom.key)
        if first is atom:
            if atom.next is None:
                self.table.pop(atom.key)
            else:
                self.table.put(atom.key, atom.next)
        else:
            while first.next is not atom:
                first = first.next
            first.next = atom.next
        self.count -= 1
