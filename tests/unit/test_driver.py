"""The driver's calls: what is checked, in which order, what is answered, and what is not.

The bus is a real one that keeps what it is told, and what it was to send, instead of sending it;
its front says nothing.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import corebus
import pytest
from rawclient import DRIVER, DRIVER_PATH, Received, build, parse

from jitney.broker import errors as core_errors
from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.errors import LIMITS, Refused
from jitney.broker.match import Rule
from jitney.broker.mem import Buffer
from jitney.broker.message import Message
from jitney.compat import errors, matchrule, wire
from jitney.compat.driver import INTERFACES, Driver, introspection_xml, peer
from jitney.compat.errors import DBusError

STATS = b"org.freedesktop.DBus.Debug.Stats"
PROPERTIES = b"org.freedesktop.DBus.Properties"
MONITORING = b"org.freedesktop.DBus.Monitoring"
PEER = b"org.freedesktop.DBus.Peer"


class Recorder(Bus):
    """Keeps every call as a line of `log`, every message sent in `sent`, what the front is given
    to log in `lines`."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.sent: list[tuple[Connection | None, Received]] = []
        self.captured: list[Message] = []
        self.answer = 0
        self.refusal: Refused | None = None
        self.lines: list[tuple[str, str]] = []
        self.front = SimpleNamespace(
            waits_no_more=lambda conn: None,
            log=lambda severity, text, event="", **about: self.lines.append((severity, text)),
            registered=lambda conn: self.set_policy(conn, corebus.OpenPolicy()),
            name_owner_changed=lambda name, old, new: None,
            name_acquired=lambda conn, name: None,
            name_owned=lambda conn, name: None,
            name_lost=lambda conn, name: None,
        )

    def new(self, uid: int | None = 0) -> Connection:
        """A connection that has not said Hello."""
        conn = self.connect(uid)
        conn.accepts_fds = True
        conn.creds = SimpleNamespace(
            uid=uid, pid=77, kernel_groups=lambda: [4, 5], label=lambda: None, pidfd=lambda: None,
            described=None,
        )  # fmt: skip
        return conn

    def join(self, uid: int | None = 0) -> Connection:
        conn = self.new(uid)
        super().hello(conn)
        return conn

    def emit(
        self,
        dest: Connection | None,
        data: bytes,
        fds: Any = None,
        captured: bool = False,
    ) -> None:
        # Our own client's parser and the core's: the core does not look at what the driver made.
        assert Message().load(data)
        message = parse(data, [])
        assert message.n_fds == (0 if fds is None else len(fds))
        self.sent.append((dest, message))
        self.log.append(message.member or message.error_name or "reply")

    def post(self, dest: Connection, data: Buffer) -> None:
        self.emit(dest, bytes(data))

    def tell(self, msg: Message) -> None:
        whole = Message()
        assert whole.load(msg.wire())
        assert [msg.string_arg(i) for i in range(4)] == [whole.string_arg(i) for i in range(4)]
        assert (msg.serial, msg.member, msg.body()) == (whole.serial, whole.member, whole.body())
        self.emit(None, msg.wire())

    def heard(self) -> bool:
        return True

    def capture(self, msg: Message, sender: object, dest: object) -> None:
        self.captured.append(msg)

    def hello(self, conn: Connection) -> None:
        if self.refusal:
            raise self.refusal
        super().hello(conn)

    def announce(self, conn: Connection) -> None:
        self.log.append("announce")

    def request_name(self, conn: Connection, text: bytes, flags: int) -> int:
        self.log.append(f"request {text.decode()} {flags}")
        return self.answer or super().request_name(conn, text, flags)

    def release_name(self, conn: Connection, text: bytes) -> int:
        self.log.append(f"release {text.decode()}")
        return self.answer

    def add_match(self, conn: Connection, rule: Rule) -> None:
        if self.refusal:
            raise self.refusal
        super().add_match(conn, rule)

    def become_monitor(self, conn: Connection, rules: list[Rule]) -> None:
        texts = [matchrule.format(rule) or "(all)" for rule in rules]
        self.log.append("monitor " + " ".join(texts))
        super().become_monitor(conn, rules)


class FakeActivation:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start_service(self, conn: Any, msg: Any, name: bytes) -> None:
        if name == b"no.such":
            raise DBusError(errors.SERVICE_UNKNOWN, "nobody")
        self.calls.append(("start", name))

    def update_environment(self, variables: Any) -> None:
        self.calls.append(variables)

    def activatable_names(self) -> list[bytes]:
        return [b"a.b"]

    def systemd_failure(self, conn: Any, msg: Any) -> None:
        self.calls.append("failure")


class FakeContext:
    guid = "0123456789abcdef0123456789abcdef"
    systemd_activation = False
    uid = 1000

    def __init__(self) -> None:
        self.reloads = 0

    def reload(self) -> None:
        self.reloads += 1

    def stats(self) -> dict[str, int]:
        return {"ActiveConnections": 3, "Extra": 1 << 40}

    def connection_stats(self, conn: Any) -> dict[str, int]:
        return {"MatchRules": 2}


class World:
    """A driver among fakes; `call()` gives the reply of the one call it makes, or None."""

    def __init__(self) -> None:
        self.bus = Recorder()
        self.activation = FakeActivation()
        self.context = FakeContext()
        self.driver = Driver(self.bus, self.activation, self.context, INTERFACES)
        # The one that calls is :1.5, and alone.
        before = [self.bus.join() for _ in range(5)]
        self.conn = self.bus.join()
        for conn in before:
            self.bus.disconnect(conn)
        Bus.request_name(self.bus, self.conn, b"owned.name", 0)

    def send(self, data: bytes, conn: Connection | None = None) -> bool:
        msg = Message()
        assert msg.load(data)
        return self.driver.call(conn or self.conn, msg)

    def call(
        self,
        member: bytes,
        signature: str = "",
        *values: Any,
        interface: bytes | None = DRIVER,
        path: bytes = DRIVER_PATH,
        flags: int = 0,
        conn: Connection | None = None,
        big_endian: bool = False,
    ) -> Received | None:
        fields = [(1, "o", path), (3, "s", member), (6, "s", DRIVER)]
        if interface is not None:
            fields.append((2, "s", interface))
        before = len(self.bus.sent)
        well = self.send(
            build(1, 42, fields, signature, values, flags=flags, big_endian=big_endian), conn
        )
        replies = [
            (dest, message) for dest, message in self.bus.sent[before:] if message.reply_serial
        ]
        if not replies:
            assert well
            return None
        ((dest, reply),) = replies
        assert dest is (conn or self.conn)
        assert well == (reply.type == wire.RETURN)
        assert (reply.flags, reply.reply_serial) == (wire.NO_REPLY, 42)
        assert reply.sender == DRIVER.decode()
        return reply


@pytest.fixture
def world() -> World:
    return World()


def result(reply: Received | None) -> Any:
    """The values of a good reply, or (name without prefix, text) of an error."""
    assert reply is not None
    if reply.error_name:
        return reply.error_name.removeprefix("org.freedesktop.DBus.Error."), reply.body[0]
    return reply.body


# ---- looking up


@pytest.mark.parametrize(
    ("member", "interface", "path", "name"),
    [
        (b"Nope", DRIVER, DRIVER_PATH, "UnknownMethod"),
        (b"Nope", None, DRIVER_PATH, "UnknownMethod"),
        (b"Nope", b"no.such", DRIVER_PATH, "UnknownInterface"),
        (b"GetStats", DRIVER, DRIVER_PATH, "UnknownMethod"),
        (b"GetStats", STATS, b"/x", "UnknownInterface"),
        (b"GetStats", None, b"/x", "UnknownMethod"),
        (b"Get", PROPERTIES, b"/x", "UnknownInterface"),
        (b"Nope", PROPERTIES, DRIVER_PATH, "UnknownMethod"),
        (b"Nope", PROPERTIES, b"/x", "UnknownInterface"),
    ],
)
def test_unknown(
    world: World, member: bytes, interface: bytes | None, path: bytes, name: str
) -> None:
    text = f"org.freedesktop.DBus does not understand message {member.decode()}"
    assert result(world.call(member, interface=interface, path=path)) == (name, text)


def test_old_methods_work_everywhere_and_without_interface(world: World) -> None:
    assert result(world.call(b"GetId", path=b"/x")) == [world.context.guid]
    assert result(world.call(b"GetId", interface=None, path=b"/x")) == [world.context.guid]
    assert result(world.call(b"GetStats", interface=None))[0]["ActiveConnections"] == ("u", 3)


def test_new_methods_of_old_interfaces_are_bound_to_the_path(world: World) -> None:
    text = (
        "Method 'UpdateActivationEnvironment' is only available at the canonical object path"
        " '/org/freedesktop/DBus'"
    )
    reply = world.call(b"UpdateActivationEnvironment", "s", "x", path=b"/x")
    assert result(reply) == ("AccessDenied", text)


def test_wrong_arguments(world: World) -> None:
    assert result(world.call(b"RequestName", "s", "a.b")) == (
        "InvalidArgs", "Call to RequestName has wrong args (s, expected su)\n",
    )  # fmt: skip
    assert result(world.call(b"Ping", "s", "x", interface=PEER)) == (
        "InvalidArgs", "Call to Ping has wrong args (s, expected )\n",
    )  # fmt: skip


@pytest.mark.parametrize(("uid", "well"), [(0, True), (1000, True), (1001, False), (None, False)])
def test_privileged(world: World, uid: int | None, well: bool) -> None:
    conn = world.bus.join(uid)
    reply = world.call(b"UpdateActivationEnvironment", "a{ss}", {"A": "b"}, conn=conn)
    if well:
        assert result(reply) == []
        assert world.activation.calls == [{"A": "b"}]
        assert world.bus.lines == []
        return
    name, text = result(reply)
    assert name == "AccessDenied"
    assert text.startswith(
        "rejected attempt to call UpdateActivationEnvironment by connection :1.6 ("
    )
    assert text.endswith(") with unknown uid" if uid is None else ") with uid 1001")
    assert world.bus.lines == [("security", text)]
    assert world.activation.calls == []


def test_privilege_comes_before_path_and_arguments(world: World) -> None:
    conn = world.bus.join(1001)
    for path in (b"/x", DRIVER_PATH):
        name, text = result(
            world.call(b"UpdateActivationEnvironment", "s", "x", conn=conn, path=path)
        )
        assert (name, text[:16]) == ("AccessDenied", "rejected attempt")


def test_table_names_no_method_twice() -> None:
    members = [method.name for interface in INTERFACES for method in interface.methods]
    assert len(members) == len(set(members))


# ---- replies


def test_only_acknowledgements_can_be_waived(world: World) -> None:
    quiet = wire.NO_REPLY
    assert world.call(b"Ping", interface=PEER, flags=quiet) is None
    assert world.call(b"AddMatch", "s", "", flags=quiet) is None
    assert world.call(b"RemoveMatch", "s", "", flags=quiet) is None
    assert world.call(b"UpdateActivationEnvironment", "a{ss}", {}, flags=quiet) is None
    assert result(world.call(b"GetId", flags=quiet)) == [world.context.guid]
    assert result(world.call(b"ReloadConfig", flags=quiet)) == []
    assert result(world.call(b"Nope", flags=quiet))[0] == "UnknownMethod"


def test_refusals_of_the_core_become_errors(world: World) -> None:
    world.bus.refusal = Refused(LIMITS, "too many")
    assert result(world.call(b"AddMatch", "s", "")) == ("LimitsExceeded", "too many")


def test_every_refusal_of_the_core_has_a_name() -> None:
    codes = {value for key, value in vars(core_errors).items() if key.isupper()}
    assert codes == errors.NAMES.keys()


def test_serials_never_repeat_and_are_never_zero(world: World) -> None:
    for _ in range(3):
        world.call(b"GetId")
    assert [message.serial for _, message in world.bus.sent] == [1, 2, 3]
    world.driver.serial = 0xFFFFFFFE
    assert [world.driver.next_serial() for _ in range(2)] == [0xFFFFFFFF, 1]


# ---- being on the bus


def test_hello(world: World) -> None:
    conn = world.bus.new()
    assert result(world.call(b"Hello", conn=conn)) == [":1.6"]
    assert world.bus.log == ["reply", "announce"]
    assert result(world.call(b"Hello", conn=conn)) == (
        "Failed", "Already handled an Hello message",
    )  # fmt: skip


def test_refused_hello_is_answered_to_nobody_in_particular(world: World) -> None:
    world.bus.refusal = Refused(LIMITS, "full")
    reply = world.call(b"Hello", conn=world.bus.new())
    assert result(reply) == ("LimitsExceeded", "full")
    assert reply is not None
    assert reply.destination == ":not.active.yet"
    assert world.bus.log == [errors.LIMITS_EXCEEDED]


@pytest.mark.parametrize("big_endian", [False, True])
def test_names(world: World, big_endian: bool) -> None:
    world.bus.answer = 3
    assert result(world.call(b"RequestName", "su", "a.bc", 0x01020304, big_endian=big_endian)) == [
        3
    ]
    assert result(world.call(b"ReleaseName", "s", "a.bc", big_endian=big_endian)) == [3]
    assert world.bus.log[::2] == ["request a.bc 16909060", "release a.bc"]


@pytest.mark.parametrize(
    ("name", "owner"),
    [("owned.name", ":1.5"), (":1.5", ":1.5"), ("org.freedesktop.DBus", "org.freedesktop.DBus"),
     ("no.body", None), ("", None), ("not a name", None)],
)  # fmt: skip
def test_owners(world: World, name: str, owner: str | None) -> None:
    assert result(world.call(b"NameHasOwner", "s", name)) == [owner is not None]
    texts = {b"GetNameOwner": "owner", b"ListQueuedOwners": "owners"}
    for method, what in texts.items():
        got = result(world.call(method, "s", name))
        if owner is None:
            text = f"Could not get {what} of name '{name}': no such name"
            assert got == ("NameHasNoOwner", text)
        else:
            assert got == ([owner] if method == b"GetNameOwner" else [[owner]])


def test_queue_of_a_name(world: World) -> None:
    for _ in range(2):
        Bus.request_name(world.bus, world.bus.join(), b"owned.name", 0)
    assert result(world.call(b"ListQueuedOwners", "s", "owned.name")) == [[":1.5", ":1.6", ":1.7"]]


def test_list_names(world: World) -> None:
    Bus.become_monitor(world.bus, world.bus.join(), [Rule()])
    world.bus.names.set_activator(b"only.activatable", object())
    assert result(world.call(b"ListNames")) == [["org.freedesktop.DBus", ":1.5", "owned.name"]]


def test_matches(world: World) -> None:
    rule = "type='signal',member='M'"
    assert result(world.call(b"AddMatch", "s", rule)) == []
    assert result(world.call(b"AddMatch", "s", "interface='a.b'")) == []
    assert result(world.call(b"GetAllMatchRules", interface=STATS)) == [
        {":1.5": ["interface='a.b'", rule]}
    ]
    assert result(world.call(b"RemoveMatch", "s", "member=M,type=signal")) == []
    assert [matchrule.format(have) for have in world.conn.rules] == ["interface='a.b'"]
    assert result(world.call(b"AddMatch", "s", "nonsense"))[0] == "MatchRuleInvalid"


def test_eavesdropping_is_privileged(world: World) -> None:
    rule = "eavesdrop='true'"
    conn = world.bus.join(1001)
    name, text = result(world.call(b"AddMatch", "s", rule, conn=conn))
    assert (name, conn.rules) == ("AccessDenied", [])
    assert text.startswith("rejected attempt to call AddMatch by connection :1.6 (")
    assert result(world.call(b"AddMatch", "s", rule)) == []


def test_activation(world: World) -> None:
    assert world.call(b"StartServiceByName", "su", "a.b", 0) is None
    assert world.activation.calls == [("start", b"a.b")]
    assert result(world.call(b"StartServiceByName", "su", "no.such", 0)) == (
        "ServiceUnknown", "nobody",
    )  # fmt: skip
    assert result(world.call(b"ListActivatableNames")) == [["org.freedesktop.DBus", "a.b"]]


def test_reload(world: World) -> None:
    assert result(world.call(b"ReloadConfig")) == []
    assert world.context.reloads == 1


# ---- credentials


def test_credentials(world: World) -> None:
    assert result(world.call(b"GetConnectionUnixUser", "s", "owned.name")) == [0]
    assert result(world.call(b"GetConnectionUnixProcessID", "s", ":1.5")) == [77]
    assert result(world.call(b"GetConnectionCredentials", "s", ":1.5")) == [
        {"ProcessID": ("u", 77), "UnixUserID": ("u", 0), "UnixGroupIDs": ("au", [4, 5])}
    ]


def test_credentials_of_the_bus(world: World) -> None:
    me = DRIVER.decode()
    assert result(world.call(b"GetConnectionUnixUser", "s", me)) == [os.getuid()]
    assert result(world.call(b"GetConnectionUnixProcessID", "s", me)) == [os.getpid()]
    assert result(world.call(b"GetConnectionCredentials", "s", me)) == [
        {"ProcessID": ("u", os.getpid()), "UnixUserID": ("u", os.getuid())}
    ]


def test_label_and_process_fd(world: World) -> None:
    opened = []

    def pidfd() -> int:
        opened.append(os.open("/dev/null", os.O_RDONLY))
        return opened[-1]

    world.conn.creds.label = lambda: b"label"
    world.conn.creds.pidfd = pidfd
    known = result(world.call(b"GetConnectionCredentials", "s", ":1.5"))[0]
    assert known["LinuxSecurityLabel"] == ("ay", b"label\0")
    assert known["ProcessFD"] == ("h", 0)
    # Nobody has kept the message, so the descriptor must be closed by now.
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
    # A caller who cannot take it gets none, and none is made.
    world.conn.accepts_fds = False
    assert "ProcessFD" not in result(world.call(b"GetConnectionCredentials", "s", ":1.5"))[0]
    assert len(opened) == 1


def test_unknown_credentials(world: World) -> None:
    nobody = world.bus.join(None)
    nobody.creds.pid = None
    expected = {
        b"GetConnectionUnixUser": ("Failed", "Could not determine UID for ':1.6'"),
        b"GetConnectionUnixProcessID": (
            "UnixProcessIdUnknown", "Could not determine PID for ':1.6'",
        ),
        b"GetAdtAuditSessionData": (
            "AdtAuditDataUnknown", "Could not determine audit session data for ':1.6'",
        ),
        b"GetConnectionSELinuxSecurityContext": (
            "SELinuxSecurityContextUnknown", "Could not determine security context for ':1.6'",
        ),
        b"GetConnectionCredentials": [{}],
    }  # fmt: skip
    for method, answer in expected.items():
        assert result(world.call(method, "s", ":1.6")) == answer


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (b"GetConnectionUnixUser", "UID"),
        (b"GetConnectionUnixProcessID", "PID"),
        (b"GetConnectionCredentials", "credentials"),
        (b"GetAdtAuditSessionData", "audit session data"),
        (b"GetConnectionSELinuxSecurityContext", "security context"),
    ],
)
def test_credentials_of_nobody(world: World, method: bytes, what: str) -> None:
    text = f"Could not get {what} of name 'no.body': no such name"
    assert result(world.call(method, "s", "no.body")) == ("NameHasNoOwner", text)


# ---- the other interfaces


def test_properties(world: World) -> None:
    bus = DRIVER.decode()
    features = ("as", ["ActivatableServicesChanged", "HeaderFiltering"])
    interfaces = (
        "as",
        [
            MONITORING.decode(),
            STATS.decode(),
            "org.jitney.Policy1",
            "org.jitney.Inspect1",
            "org.jitney.Trace1",
            "org.jitney.Upgrade1",
            "org.jitney.Endpoints1",
            "org.jitney.Containers1",
        ],
    )

    def call(member: bytes, signature: str, *values: Any) -> Any:
        return result(world.call(member, signature, *values, interface=PROPERTIES))

    assert call(b"Get", "ss", bus, "Features") == [features]
    assert call(b"GetAll", "s", bus) == [{"Features": features, "Interfaces": interfaces}]
    assert call(b"GetAll", "s", PEER.decode()) == [{}]
    assert call(b"GetAll", "s", "") == ("UnknownInterface", 'Interface "" not found')
    text = f'Property "{bus}.X" not found'
    assert call(b"Get", "ss", bus, "X") == ("UnknownProperty", text)
    assert call(b"Set", "ssv", bus, "X", ("s", "")) == ("UnknownProperty", text)
    text = f"Property '{bus}.Features' cannot be set"
    assert call(b"Set", "ssv", bus, "Features", ("s", "")) == ("PropertyReadOnly", text)
    world.context.systemd_activation = True
    assert call(b"Get", "ss", bus, "Features")[0][1][-1] == "SystemdActivation"


def test_stats(world: World) -> None:
    first = result(world.call(b"GetStats", interface=STATS))[0]
    assert first["Serial"] == ("u", 0)
    assert first["PeakBusNames"] == ("u", 0)
    assert list(first)[4] == "ActiveConnections"
    assert first["Extra"] == ("u", 0xFFFFFFFF)
    assert result(world.call(b"GetStats", interface=STATS))[0]["Serial"] == ("u", 1)
    mine = result(world.call(b"GetConnectionStats", "s", "owned.name", interface=STATS))[0]
    assert list(mine)[:6] == [
        "Serial", "MatchRules", "PeakMatchRules", "BusNames", "PeakBusNames", "UniqueName",
    ]  # fmt: skip
    assert (mine["MatchRules"], mine["UniqueName"]) == (("u", 2), ("s", ":1.5"))
    assert result(world.call(b"GetConnectionStats", "s", DRIVER.decode(), interface=STATS)) == (
        "InvalidArgs",
        'GetConnectionStats is not meaningful for the message bus "org.freedesktop.DBus" itself',
    )


def test_become_monitor(world: World) -> None:
    def become(filters: list[str], flags: int = 0, conn: Connection | None = None) -> Any:
        return result(
            world.call(b"BecomeMonitor", "asu", filters, flags, interface=MONITORING, conn=conn)
        )

    assert become([], 1) == ("InvalidArgs", "BecomeMonitor does not support any flags yet")
    assert become(["member='M'", "x"])[0] == "MatchRuleInvalid"
    assert not world.conn.monitor
    assert become([]) == []
    assert world.bus.log[-2:] == ["reply", "monitor (all)"]
    assert world.bus.lines[-1][0] == "info"
    assert become(["member='M'", "path='/'"], conn=world.bus.join()) == []
    assert world.bus.log[-1] == "monitor member='M' path='/'"


def test_introspection(world: World) -> None:
    introspectable = b"org.freedesktop.DBus.Introspectable"
    for path in (b"/", b"/org", b"/org/freedesktop", b"/org/freedesktop/DBus", b"/x"):
        reply = world.call(b"Introspect", interface=introspectable, path=path)
        assert result(reply) == [introspection_xml(path)]
    assert '<node name="freedesktop/DBus"/>' in introspection_xml(b"/org")
    assert "Debug.Stats" not in introspection_xml(b"/")
    assert "Debug.Stats" in introspection_xml()


def test_machine_id(world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(peer, "MACHINE_ID_FILES", [str(first), str(second)])
    monkeypatch.setattr(peer, "_known", [])

    def ask() -> Any:
        return result(world.call(b"GetMachineId", interface=PEER, path=b"/any"))

    second.write_text("short\n")
    text = (
        "D-Bus library appears to be incorrectly set up: see the manual page for dbus-uuidgen to"
        f' correct this issue. (Failed to open "{first}": No such file or directory; UUID file'
        f" '{second}' should contain a hex string of length 32, not length 5, with no other text)"
    )
    assert ask() == ("InvalidFileContent", text)
    second.write_text("z" * 32)
    assert ask()[0] == "InvalidFileContent"
    second.unlink()
    assert ask()[0] == "FileNotFound"
    second.write_text("0123456789ABCDEF0123456789abcdef \n")
    assert ask() == ["0123456789abcdef0123456789abcdef"]
    second.unlink()
    assert ask() == ["0123456789abcdef0123456789abcdef"]


# ---- what is not a call to the bus


def test_other_messages_are_ignored(world: World) -> None:
    assert world.send(build(2, 1, [(5, "u", 7), (6, "s", DRIVER)]))
    assert world.send(build(3, 2, [(5, "u", 7), (4, "s", b"a.B"), (6, "s", DRIVER)]))
    assert world.send(build(4, 3, [(1, "o", b"/"), (2, "s", b"a.b"), (3, "s", b"M")]))
    assert world.bus.sent == []


def test_activation_failure(world: World) -> None:
    failure = build(
        4, 3, [(1, "o", b"/org/freedesktop/DBus"), (3, "s", b"ActivationFailure"),
               (2, "s", b"org.freedesktop.systemd1.Activator"), (6, "s", DRIVER)],
        "sss", ["unit", "a.b.C", "text"],
    )  # fmt: skip
    assert world.send(failure)
    assert world.activation.calls == ["failure"]
    assert not world.send(failure, world.bus.join(1001))
    assert world.activation.calls == ["failure"]
    assert world.bus.sent[-1][1].error_name == errors.ACCESS_DENIED


@pytest.mark.parametrize(
    ("interface", "member", "answer"),
    [
        (PEER, b"Ping", []),
        (PEER, b"Nope", "Unknown method invoked on org.freedesktop.DBus.Peer interface"),
        (b"a.b", b"M", 'Method "M" with signature "" on interface "a.b" doesn\'t exist\n'),
        (None, b"M", 'Method "M" with signature "" on interface "(null)" doesn\'t exist\n'),
    ],
)
def test_calls_to_nobody(
    world: World, interface: bytes | None, member: bytes, answer: list[Any] | str
) -> None:
    fields: list[tuple[int, str, Any]] = [(1, "o", b"/x"), (3, "s", member)]
    if interface:
        fields.append((2, "s", interface))
    msg = Message()
    assert msg.load(build(1, 42, fields, flags=wire.NO_REPLY))
    world.driver.undirected(world.bus.new(), msg)
    ((_, reply),) = world.bus.sent
    assert (reply.sender, reply.destination, reply.reply_serial) == (None, None, 42)
    assert reply.body == (answer if isinstance(answer, list) else [answer])
    assert reply.error_name == (None if isinstance(answer, list) else errors.UNKNOWN_METHOD)


# ---- signals


def test_signals(world: World) -> None:
    old, new = world.bus.join(), world.bus.join()
    driver: Any = world.driver
    driver.name_lost(old, b"a.b")
    driver.name_owner_changed(b"a.b", old, new)
    driver.name_acquired(new, b"a.b")
    driver.name_owner_changed(b":1.7", None, new)
    driver.activatable_services_changed()
    seen = [(dest, m.member, m.destination, m.body) for dest, m in world.bus.sent]
    assert seen == [
        (old, "NameLost", ":1.6", ["a.b"]),
        (None, "NameOwnerChanged", None, ["a.b", ":1.6", ":1.7"]),
        (new, "NameAcquired", ":1.7", ["a.b"]),
        (None, "NameOwnerChanged", None, [":1.7", "", ":1.7"]),
        (None, "ActivatableServicesChanged", None, []),
    ]
    for _, message in world.bus.sent:
        assert (message.path, message.interface) == (DRIVER_PATH.decode(), DRIVER.decode())
        assert (message.flags, message.sender) == (wire.NO_REPLY, DRIVER.decode())


def test_captured_error_reaches_monitors_only(world: World) -> None:
    world.driver.capture_error(world.conn, 9, errors.ACCESS_DENIED, "no")
    assert world.bus.sent == []
    (msg,) = world.bus.captured
    assert (msg.error_name, msg.destination) == (errors.ACCESS_DENIED.encode(), b":1.5")
