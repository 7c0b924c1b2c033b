# cython: infer_types=True
"""Match rules and their index: who wants to hear a message that is not addressed to him.

Invariant: `MatchIndex.collect()` gives each receiver at most once, and exactly those that
have a rule which `Rule.matches()` says yes to (tests hold it against that naive oracle).
Its cost follows the shapes of rules in use, not their number.

A rule's *shape* says which of its keys can be looked up: sender, interface, member, path
(exact or namespace), one argument. Rules of one shape live in a hash table keyed by the
values of those keys; a message probes each shape once (namespaces: once per prefix). All
other keys are checked on the few rules found. Strings are compared as atoms.

Rules of one shape and the same values hang in one chain, in the order in which they were added: the
table has the first, whose `before` is the last. So adding and removing cost the same whatever the
number of rules, also where ten thousand peers have the same one.

Semantics: D-Bus specification "Match Rules"; `eavesdrop` and `destination` as dbus-daemon.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from ._cython import cython

from .atoms import Atom, Atoms
from .connection import Connection
from .mem import Map64
from .message import Message

if not cython.compiled:
    from .mem import hash64, mix, of_bytes, same

ARG_STRING, ARG_PATH, ARG_NAMESPACE = b"s", b"p", b"n"

# Shape bits; the looked-up argument's number is kept apart.
S_SENDER, S_INTERFACE, S_MEMBER, S_PATH, S_PATH_NS, S_ARG, S_ARG_NS = 1, 2, 4, 8, 16, 32, 64
S_EAVESDROP = 128

DRIVER_NAME = b"org.freedesktop.DBus"


@cython.freelist(16)
@cython.cclass
class Arg:
    """One argN, argNpath or arg0namespace key. `kind`: 115 string, 112 path, 110 namespace."""

    def __init__(self, index: int = 0, kind: int = 0, text: bytes = b"") -> None:
        self.index = index
        self.kind = kind
        self.text = text

    def matches(self, msg: Message) -> bool:
        i = self.index
        if i >= msg.n_args:
            return False
        have = msg.arg_kind[i]
        if have != 115 and not (self.kind == 112 and have == 111):
            return False
        off = msg.arg_off[i]
        n = msg.arg_len[i]
        want = len(self.text)
        p = msg.p
        if self.kind == 115:
            return same(p, off, n, self.text)
        if self.kind == 110:
            if n < want or not same(p, off, want, self.text):
                return False
            return n == want or p[off + want] == 46
        # argNpath: equal, or one is a "directory" that the other lies in.
        if n < want:
            if n == 0 or p[off + n - 1] != 47:
                return False
            return same(p, off, n, self.text[:n])
        if want < n and (want == 0 or self.text[want - 1] != 47):
            return False
        return same(p, off, want, self.text)


@cython.freelist(16)
@cython.cclass
class Rule:
    """One match rule. All strings are bytes; None means "any".

    `args` maps an argument number to (kind, value): "s" argN, "p" argNpath, "n" arg0namespace.
    `owner` has it in an index, as his `number`th rule; `earlier` is one of his that says the
    same, or happens to have the same `digest`."""

    def __init__(
        self,
        type: int = 0,
        sender: bytes | None = None,
        interface: bytes | None = None,
        member: bytes | None = None,
        path: bytes | None = None,
        path_namespace: bytes | None = None,
        destination: bytes | None = None,
        args: dict[int, tuple[str, bytes]] | None = None,
        eavesdrop: bool = False,
    ) -> None:
        self.type = type
        self.sender = sender
        self.interface = interface
        self.member = member
        self.path = path
        self.path_namespace = path_namespace
        self.destination = destination
        self.eavesdrop = eavesdrop
        self.args: tuple[Arg, ...] = ()
        if args:
            self.args = tuple([Arg(i, ord(kind), text) for i, (kind, text) in sorted(args.items())])
        self.owner: Connection | None = None
        self.number = 0
        self.digest = 0
        self.earlier: Rule | None = None
        self.before: Rule | None = None
        self.after: Rule | None = None
        self.shape: Shape | None = None
        self.key = 0
        self.sender_id = 0
        self.sender_atom: Atom | None = None
        self.interface_atom: Atom | None = None
        self.member_atom: Atom | None = None
        self.path_atom: Atom | None = None
        self.arg_atom: Atom | None = None

    def content(self) -> int:
        """A number that rules which say the same have in common."""
        key = mix(self.type, 1 if self.eavesdrop else 0)
        key = blend(key, self.sender)
        key = blend(key, self.interface)
        key = blend(key, self.member)
        key = blend(key, self.path)
        key = blend(key, self.path_namespace)
        key = blend(key, self.destination)
        for arg in self.args:
            key = blend(mix(key, arg.index * 256 + arg.kind), arg.text)
        return key

    def same_as(self, other: Rule) -> bool:
        """Whether RemoveMatch takes one for the other."""
        if (
            self.type != other.type
            or self.eavesdrop != other.eavesdrop
            or self.sender != other.sender
            or self.interface != other.interface
            or self.member != other.member
            or self.path != other.path
            or self.path_namespace != other.path_namespace
            or self.destination != other.destination
            or len(self.args) != len(other.args)
        ):
            return False
        for i in range(len(self.args)):
            mine = self.args[i]
            its = other.args[i]
            if mine.index != its.index or mine.kind != its.kind or mine.text != its.text:
                return False
        return True

    def matches(self, msg: Message, sender: Connection | None, dest: Connection | None) -> bool:
        """Whether this rule wants `msg` (sender None: the driver; dest None: nobody or the driver).

        Checked key by key, whatever the index found already."""
        if self.type and self.type != msg.type:
            return False
        p = msg.p
        if self.interface is not None and not (
            msg.iface_len >= 0 and same(p, msg.iface_off, msg.iface_len, self.interface)
        ):
            return False
        if self.member is not None and not (
            msg.member_len >= 0 and same(p, msg.member_off, msg.member_len, self.member)
        ):
            return False
        if self.sender is not None and not self.sender_is(sender):
            return False
        if self.destination is not None:
            if msg.dest_len < 0 or not self.eavesdrop:
                return False
            if dest is None:
                if not same(p, msg.dest_off, msg.dest_len, self.destination):
                    return False
            elif dest.unique_name != self.destination and self.destination not in dest.owned:
                return False
        elif msg.dest_len >= 0 and not self.eavesdrop:
            return False
        if self.path is not None and not (
            msg.path_len >= 0 and same(p, msg.path_off, msg.path_len, self.path)
        ):
            return False
        if self.path_namespace is not None:
            n = len(self.path_namespace)
            if msg.path_len < n or not same(p, msg.path_off, n, self.path_namespace):
                return False
            if n > 1 and msg.path_len > n and p[msg.path_off + n] != 47:
                return False
        for arg in self.args:
            if not arg.matches(msg):
                return False
        return True

    def sender_is(self, sender: Connection | None) -> bool:
        if sender is None:
            return self.sender == DRIVER_NAME
        if self.sender_id:
            return sender.id == self.sender_id
        return self.sender in sender.owned


class Shape:
    """Rules that can be looked up by the same keys; `table` has the first of each chain."""

    def __init__(self, bits: int, arg: int) -> None:
        self.bits = bits
        self.arg = arg
        self.count = 0
        self.most = 0
        self.table = Map64()


class MatchIndex:
    """All match rules of a bus (or all monitor filters).

    `shapes` are those with rules; an empty one stays in `by_bits` unless its table has grown.
    `first`: see `routing.Router`."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.shapes: list[Shape] = []
        self.by_bits: dict[int, Shape] = {}
        self.count = 0
        self.n_eavesdrop = 0
        self.driver = atoms.intern(DRIVER_NAME)
        self.driver_key = mix(0, self.driver.number * 2 + 1)
        self.stamp = 0
        self.first = 1
        self.found: list[Connection] = []
        self.msg: Message | None = None
        self.sender: Connection | None = None
        self.dest: Connection | None = None
        self.interface_n = 0
        self.member_n = 0
        self.path_n = 0

    def __len__(self) -> int:
        return self.count

    def add(self, rule: Rule, owner: Connection) -> None:
        """Adds `rule` for `owner`; a rule object is in one index once."""
        atoms = self.atoms
        bits = S_EAVESDROP if rule.eavesdrop else 0
        arg_index = -1
        key = 0
        # The atoms' strings take the place of the rule's own: equal ones are in memory once.
        if rule.sender is not None:
            bits |= S_SENDER
            if rule.sender[:1] == b":":
                rule.sender_id = unique_id(rule.sender, self.first)
                key = mix(key, rule.sender_id * 2)
            else:
                rule.sender_atom = atoms.intern(rule.sender)
                rule.sender = rule.sender_atom.text
                rule.sender_atom.watched += 1
                key = mix(key, rule.sender_atom.number * 2 + 1)
        if rule.interface is not None:
            bits |= S_INTERFACE
            rule.interface_atom = atoms.intern(rule.interface)
            rule.interface = rule.interface_atom.text
            key = mix(key, rule.interface_atom.number)
        if rule.member is not None:
            bits |= S_MEMBER
            rule.member_atom = atoms.intern(rule.member)
            rule.member = rule.member_atom.text
            key = mix(key, rule.member_atom.number)
        if rule.path is not None:
            bits |= S_PATH
            rule.path_atom = atoms.intern(rule.path)
            rule.path = rule.path_atom.text
            key = mix(key, rule.path_atom.number)
        elif rule.path_namespace is not None and rule.path_namespace != b"/":
            bits |= S_PATH_NS
            rule.path_atom = atoms.intern(rule.path_namespace)
            rule.path_namespace = rule.path_atom.text
            key = mix(key, rule.path_atom.number)
        for arg in rule.args:
            if arg.kind == 115 or arg.kind == 110:
                bits |= S_ARG if arg.kind == 115 else S_ARG_NS
                arg_index = arg.index
                rule.arg_atom = atoms.intern(arg.text)
                arg.text = rule.arg_atom.text
                key = mix(key, rule.arg_atom.number)
                break
        place = (arg_index + 1) * 256 + bits
        shape = self.by_bits.get(place)
        if shape is None:
            shape = Shape(bits, arg_index)
            self.by_bits[place] = shape
        first = shape.table.get(key)
        if first is None:
            rule.before = rule
            shape.table.put(key, rule)
        else:
            rule.before = first.before
            rule.before.after = rule
            first.before = rule
        if shape.count == 0:
            self.shapes.append(shape)
        shape.count += 1
        if shape.count > shape.most:
            shape.most = shape.count
        self.count += 1
        self.n_eavesdrop += 1 if rule.eavesdrop else 0
        rule.shape = shape
        rule.key = key
        rule.owner = owner

    def remove(self, rule: Rule) -> None:
        """Removes a rule that `add()` added."""
        shape = rule.shape
        self.unlink(shape, rule)
        shape.count -= 1
        self.count -= 1
        self.n_eavesdrop -= 1 if rule.eavesdrop else 0
        if shape.count == 0:
            self.shapes.remove(shape)
            if shape.most > 64:
                del self.by_bits[(shape.arg + 1) * 256 + shape.bits]
        if rule.sender_atom is not None:
            rule.sender_atom.watched -= 1
            self.give_back(rule.sender_atom)
        self.give_back(rule.interface_atom)
        self.give_back(rule.member_atom)
        self.give_back(rule.path_atom)
        self.give_back(rule.arg_atom)
        rule.sender_atom = rule.interface_atom = rule.member_atom = rule.path_atom = None
        rule.arg_atom = None
        rule.shape = None
        rule.owner = None

    def unlink(self, shape: Shape, rule: Rule) -> None:
        """Takes the rule out of its chain."""
        first = shape.table.get(rule.key)
        if first is not rule:
            rule.before.after = rule.after
            if rule.after is None:
                first.before = rule.before
            else:
                rule.after.before = rule.before
        elif rule.after is None:
            shape.table.pop(rule.key)
        else:
            rule.after.before = rule.before
            shape.table.put(rule.key, rule.after)
        rule.before = rule.after = None

    def give_back(self, atom: Atom | None) -> None:
        if atom is not None:
            self.atoms.release(atom)

    def collect(
        self, msg: Message, sender: Connection | None, dest: Connection | None
    ) -> list[Connection]:
        """Connections with a rule for `msg`, each once, `dest` left out. The list is used again."""
        found = self.found
        found.clear()
        if self.count == 0:
            return found
        # The counter is shared by all indexes over these atoms, as `Connection.stamp` is.
        self.atoms.stamp += 1
        self.stamp = self.atoms.stamp
        if dest is not None:
            dest.stamp = self.stamp
        unicast = msg.dest_len >= 0
        self.msg = msg
        self.sender = sender
        self.dest = dest
        # Looked up only if any rule asks: a monitor of everything does not.
        bits = 0
        for shape in self.shapes:
            bits |= shape.bits
        self.interface_n = self.member_n = self.path_n = 0
        if bits & S_INTERFACE:
            self.interface_n = self.number_of(msg, msg.iface_off, msg.iface_len)
        if bits & S_MEMBER:
            self.member_n = self.number_of(msg, msg.member_off, msg.member_len)
        if bits & S_PATH:
            self.path_n = self.number_of(msg, msg.path_off, msg.path_len)
        for shape in self.shapes:
            bits = shape.bits
            if unicast and not bits & S_EAVESDROP:
                continue
            if bits & S_INTERFACE and self.interface_n == 0:
                continue
            if bits & S_MEMBER and self.member_n == 0:
                continue
            if bits & S_PATH and self.path_n == 0:
                continue
            if not bits & S_SENDER:
                self.probe_names(shape, 0)
            elif sender is None:
                self.probe_names(shape, self.driver_key)
            else:
                self.probe_names(shape, mix(0, sender.id * 2))
                for name in sender.owned.values():
                    atom = name.atom
                    if atom.watched:
                        self.probe_names(shape, mix(0, atom.number * 2 + 1))
        self.msg = None
        self.sender = None
        self.dest = None
        return found

    def number_of(self, msg: Message, off: int, n: int) -> int:
        if n < 0:
            return 0
        atom = self.atoms.find(msg.p, off, n)
        return atom.number if atom is not None else 0

    def probe_names(self, shape: Shape, key: int) -> None:
        bits = shape.bits
        if bits & S_INTERFACE:
            key = mix(key, self.interface_n)
        if bits & S_MEMBER:
            key = mix(key, self.member_n)
        if bits & S_PATH:
            self.probe_args(shape, mix(key, self.path_n))
        elif bits & S_PATH_NS:
            msg = self.msg
            if msg.path_len < 2:
                return
            # Every prefix of the path that ends before a slash, and the path itself.
            p = msg.p
            off = msg.path_off
            n = msg.path_len
            for i in range(2, n + 1):
                if i == n or p[off + i] == 47:
                    atom = self.atoms.find(p, off, i)
                    if atom is not None:
                        self.probe_args(shape, mix(key, atom.number))
        else:
            self.probe_args(shape, key)

    def probe_args(self, shape: Shape, key: int) -> None:
        bits = shape.bits
        if not bits & (S_ARG | S_ARG_NS):
            self.probe(shape, key)
            return
        msg = self.msg
        i = shape.arg
        if i >= msg.n_args or msg.arg_kind[i] != 115:
            return
        p = msg.p
        off = msg.arg_off[i]
        n = msg.arg_len[i]
        if bits & S_ARG:
            atom = self.atoms.find(p, off, n)
            if atom is not None:
                self.probe(shape, mix(key, atom.number))
            return
        for k in range(1, n + 1):
            if k == n or p[off + k] == 46:
                atom = self.atoms.find(p, off, k)
                if atom is not None:
                    self.probe(shape, mix(key, atom.number))

    def probe(self, shape: Shape, key: int) -> None:
        msg = self.msg
        rule = shape.table.get(key)
        while rule is not None:
            owner = rule.owner
            if owner.stamp != self.stamp and rule.matches(msg, self.sender, self.dest):
                owner.stamp = self.stamp
                self.found.append(owner)
            rule = rule.after


def blend(key: int, text: bytes | None) -> int:
    """One more string, or none, for `Rule.content()`."""
    return mix(key, hash64(of_bytes(text), 0, len(text)) if text is not None else 1)


def unique_id(name: bytes, first: int) -> int:
    """The id in a unique name of a bus (":1.N"; `first` is that of ":1.0"); a number nobody has for
    any other."""
    digits = name[3:]
    if (
        name[:3] == b":1."
        and digits.isdigit()
        and len(digits) < 19
        and (digits[:1] != b"0" or digits == b"0")
    ):
        return int(digits) + first
    return 0xFFFFFFFFFFFF
