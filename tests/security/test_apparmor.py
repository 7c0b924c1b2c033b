"""AppArmor on a whole bus: what the profiles are asked, and what follows.

The profiles are made up (tests/mediated.py); nothing here needs a kernel with AppArmor.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import mediated
import pytest
from mediated import FakeAppArmor, World, call, may_not_own, next_of, owns

from jitney.compat import wire
from jitney.compat.security.apparmorfs import BIND, EAVESDROP, RECEIVE, SEND, Answer, AppArmorFS
from jitney.compat.security.audit import USER_AVC

YES, NO, SEEN = Answer(True, False), Answer(False, True), Answer(True, True)
QUIET = Answer(False, False)


class Profiles:
    """What they say: yes, but where `words`, all of them, are in the question's."""

    def __init__(self) -> None:
        self.rules: list[tuple[int, bytes, set[bytes], Answer]] = []

    def say(self, answer: Answer, mask: int, label: bytes, *words: bytes) -> None:
        self.rules.append((mask, label, set(words), answer))

    def __call__(self, mask: int, label: bytes, rest: list[bytes]) -> Answer:
        for wanted, of, words, answer in self.rules:
            if wanted == mask and of == label and words <= set(rest):
                return answer
        return YES


@pytest.fixture
def profiles() -> Profiles:
    return Profiles()


@pytest.fixture
def kernel(profiles: Profiles) -> FakeAppArmor:
    return FakeAppArmor(profiles, watched=True)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, kernel: FakeAppArmor) -> Iterator[World]:
    labels = (b"app (enforce)", b"service (enforce)", b"unconfined", b"new (complain)")
    with mediated.world(monkeypatch, *labels, apparmor=kernel) as world:
        yield world


def test_both_sides_are_asked(world: World, kernel: FakeAppArmor) -> None:
    app, service = world.client(), world.client()
    kernel.asked.clear()
    serial = call(app, service.unique_name)
    got = next_of(service, wire.CALL)
    name, source = service.unique_name.encode(), app.unique_name.encode()
    assert kernel.asked == [
        (SEND, b"label\0app\0 system\0" + name + b"\0service\0/a\0com.example.I\0M"),
        (RECEIVE, b"label\0service\0 system\0" + source + b"\0app\0/a\0com.example.I\0M"),
    ]
    kernel.asked.clear()
    # Who may call may be answered, and nobody is asked.
    service.message(wire.RETURN, destination=source, reply_serial=got.serial)
    assert app.reply_to(serial).type == wire.RETURN
    assert kernel.asked == []
    # The same again is known.
    call(app, service.unique_name)
    assert next_of(service, wire.CALL)
    assert kernel.asked == []


def test_a_sender_that_may_not(world: World, profiles: Profiles) -> None:
    profiles.say(NO, SEND, b"app", b"M")
    app, service = world.client(), world.client()
    refused = app.reply_to(call(app, service.unique_name))
    assert refused.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    text = refused.body[0]
    assert text.startswith(
        "An AppArmor policy prevents this sender from sending this message to this recipient; "
        f'type="method_call", sender="{app.unique_name}" (uid='
    )
    assert (
        ' interface="com.example.I" member="M" error name="(unset)" requested_reply="0" '
        f'destination="{service.unique_name}" (uid='
    ) in text
    pid, peer = world.pid(app), world.pid(app, "peer_pid")
    assert world.records == [
        (
            USER_AVC,
            (
                'apparmor="DENIED" operation="dbus_method_call"  bus="system" path="/a" '
                f'interface="com.example.I" member="M" mask="send" name="{service.unique_name}"'
                f'{pid} label="app"{peer} peer_label="service"'
            ),
        )
    ]
    call(app, service.unique_name, b"Other")
    assert next_of(service, wire.CALL).member == "Other"


def test_a_receiver_that_may_not(world: World, profiles: Profiles) -> None:
    profiles.say(NO, RECEIVE, b"service", b"com.example.I")
    app, service = world.client(), world.client()
    assert "An AppArmor policy" in app.reply_to(call(app, service.unique_name)).body[0]
    pid, peer = world.pid(app), world.pid(app, "peer_pid")
    assert world.denied() == [
        (
            'apparmor="DENIED" operation="dbus_method_call"  bus="system" path="/a" '
            f'interface="com.example.I" member="M" name="{app.unique_name}" mask="receive"'
            f'{pid} label="service"{peer} peer_label="app"'
        )
    ]


def test_unconfined_and_complaining(world: World, profiles: Profiles, kernel: FakeAppArmor) -> None:
    profiles.say(NO, SEND, b"new")
    profiles.say(NO, BIND, b"new")
    _app, _service, free, new = (world.client() for _ in range(4))
    kernel.asked.clear()
    call(new, free.unique_name, flags=1)
    assert next_of(free, wire.CALL)
    assert [mask for mask, _ in kernel.asked] == [SEND]  # the unconfined one is not asked
    assert world.denied()[0].startswith('apparmor="ALLOWED" operation="dbus_method_call" ')
    assert owns(new, "com.example.New")
    assert (
        'apparmor="ALLOWED" operation="dbus_bind"  bus="system" name="com.example.New"'
        in (world.denied()[-1])
    )


def test_replies_that_nobody_asked_for(world: World, profiles: Profiles) -> None:
    profiles.say(NO, SEND, b"service")
    app = world.client()
    service = world.client(hello=False)
    profiles.rules.clear()
    service.hello()
    profiles.say(NO, SEND, b"service", b"app")
    service.message(wire.RETURN, destination=app.unique_name.encode(), reply_serial=77)
    assert "An AppArmor policy" in next_of(service, wire.ERROR).body[0]
    assert world.denied() == []  # replies are not written down


def test_broadcasts(world: World, profiles: Profiles) -> None:
    profiles.say(NO, RECEIVE, b"service", b"S")
    app, service, free = (world.client() for _ in range(3))
    for client in (service, free):
        client.reply_to(client.driver(b"AddMatch", "s", "interface='com.example.I'"))
    app.message(wire.SIGNAL, destination=None, path=b"/a", interface=b"com.example.I", member=b"S")
    assert next_of(free, wire.SIGNAL).member == "S"
    service.driver(b"GetId")
    last = service.receive()
    assert last is not None
    assert last.type == wire.RETURN
    assert 'operation="dbus_signal" ' in world.denied()[0]


def test_hello_and_the_bus(world: World, profiles: Profiles, kernel: FakeAppArmor) -> None:
    profiles.say(NO, SEND, b"app", b"GetId")
    app = world.client()
    hello = b"org.freedesktop.DBus\0bus\0/org/freedesktop/DBus\0org.freedesktop.DBus\0Hello"
    assert (SEND, b"label\0app\0 system\0" + hello) in kernel.asked
    source = b":not.active.yet\0app\0/org/freedesktop/DBus\0org.freedesktop.DBus\0Hello"
    assert (RECEIVE, b"label\0bus\0 system\0" + source) in kernel.asked
    refused = app.reply_to(app.driver(b"GetId"))
    assert refused.body[0].endswith(
        'member="GetId" error name="(unset)" requested_reply="0" '
        'destination="org.freedesktop.DBus" (bus)'
    )


def test_a_refused_hello(world: World, profiles: Profiles) -> None:
    """Who is not there yet has no name, and dbus-daemon says nothing else of it either."""
    profiles.say(NO, SEND, b"app", b"Hello")
    stranger = world.client(hello=False)
    refused = stranger.reply_to(stranger.driver(b"Hello"))
    assert refused.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    assert ' sender="(null)" (inactive) interface="org.freedesktop.DBus" ' in refused.body[0]


def test_names(world: World, profiles: Profiles, kernel: FakeAppArmor) -> None:
    profiles.say(NO, BIND, b"app", b"com.example.Not")
    app = world.client()
    assert owns(app, "com.example.Mine")
    assert kernel.asked[-1] == (BIND, b"label\0app\0 system\0com.example.Mine")
    assert may_not_own(app, "com.example.Not", "AppArmor")
    pid = world.pid(app)
    assert world.denied() == [
        (
            'apparmor="DENIED" operation="dbus_bind"  bus="system" name="com.example.Not" '
            f'mask="bind"{pid} label="app"'
        )
    ]


def test_eavesdroppers_and_monitors(world: World, profiles: Profiles, kernel: FakeAppArmor) -> None:
    profiles.say(NO, EAVESDROP, b"app")
    app, service = world.client(), world.client()
    told = f'Connection "{app.unique_name}" is not allowed to eavesdrop due to AppArmor policy'
    asked = app.driver(b"AddMatch", "s", "eavesdrop=true")
    assert app.reply_to(asked).body == [told]
    monitor = b"org.freedesktop.DBus.Monitoring"
    asked = app.driver(b"BecomeMonitor", "asu", [], 0, interface=monitor)
    assert app.reply_to(asked).body == [told]
    assert (EAVESDROP, b"label\0app\0 system") in kernel.asked
    pid = world.pid(app)
    assert set(world.denied()) == {
        (
            'apparmor="DENIED" operation="dbus_eavesdrop"  bus="system" mask="eavesdrop"'
            f'{pid} label="app"'
        )
    }
    assert app.reply_to(app.driver(b"AddMatch", "s", "type='signal'")).type == wire.RETURN
    asked = service.driver(b"BecomeMonitor", "asu", [], 0, interface=monitor)
    assert service.reply_to(asked).type == wire.RETURN


def test_monitors_see_what_was_withheld(world: World, profiles: Profiles) -> None:
    profiles.say(NO, SEND, b"app", b"com.example.I")
    app, service, free = (world.client() for _ in range(3))
    asked = free.driver(
        b"BecomeMonitor", "asu", [], 0, interface=b"org.freedesktop.DBus.Monitoring"
    )
    free.reply_to(asked)
    app.reply_to(call(app, service.unique_name))
    assert next_of(free, wire.CALL).member == "M"
    assert "An AppArmor policy" in next_of(free, wire.ERROR).body[0]


def test_new_profiles(world: World, profiles: Profiles, kernel: FakeAppArmor) -> None:
    app, service = world.client(), world.client()
    call(app, service.unique_name, flags=1)
    assert next_of(service, wire.CALL)
    profiles.say(NO, SEND, b"app", b"M")
    call(app, service.unique_name, flags=1)
    assert next_of(service, wire.CALL)  # nobody has said yet that there are any
    kernel.changed()
    world.do(lambda: None)
    world.do(lambda: None)
    assert app.reply_to(call(app, service.unique_name)).type == wire.ERROR


def test_nothing_is_kept_where_the_kernel_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, profiles: Profiles
) -> None:
    kernel = FakeAppArmor(profiles, watched=False)
    with mediated.world(monkeypatch, b"app (enforce)", b"unconfined", apparmor=kernel) as world:
        app, free = world.client(), world.client()
        call(app, free.unique_name, flags=1)
        assert next_of(free, wire.CALL)
        profiles.say(NO, SEND, b"app", b"M")
        assert app.reply_to(call(app, free.unique_name)).type == wire.ERROR


def test_unconfined_pairs_ask_nobody(monkeypatch: pytest.MonkeyPatch, profiles: Profiles) -> None:
    kernel = FakeAppArmor(profiles, watched=False)
    with mediated.world(monkeypatch, b"unconfined", apparmor=kernel) as world:
        one, other = world.client(), world.client()
        kernel.asked.clear()
        for _ in range(3):
            call(one, other.unique_name, flags=1)
            assert next_of(other, wire.CALL)
        assert kernel.asked == []


def test_a_kernel_that_does_not_answer(world: World, kernel: FakeAppArmor) -> None:
    app, service = world.client(), world.client()
    kernel.fails = errno.EACCES
    refused = app.reply_to(call(app, service.unique_name))
    assert refused.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    assert refused.body == ["Failed to query AppArmor policy: Permission denied"]
    pid, peer = world.pid(app), world.pid(app, "peer_pid")
    about = ' bus="system" path="/a" interface="com.example.I" member="M"'
    assert world.denied() == [
        (
            f'apparmor="DENIED" operation="dbus_method_call" {about} mask="send" '
            f'name="{service.unique_name}"{pid} label="app"{peer} '
            'peer_label="service" info="Permission denied"'
        ),
        (
            f'apparmor="DENIED" operation="dbus_method_call" {about} name="{app.unique_name}" '
            f'mask="receive"{pid} label="service"{peer} peer_label="app" '
            'peer_info="Permission denied"'
        ),
    ]
    kernel.fails = errno.ENOMEM
    refused = app.reply_to(app.driver(b"RequestName", "su", "com.example.Mine", 0))
    assert refused.error_name == "org.freedesktop.DBus.Error.NoMemory"
    assert refused.body == ["Failed to query AppArmor policy: Cannot allocate memory"]


def test_services_that_are_started(
    monkeypatch: pytest.MonkeyPatch, profiles: Profiles, kernel: FakeAppArmor
) -> None:
    services = {"com.example.Started": "/bin/false"}
    with mediated.world(monkeypatch, b"app (enforce)", apparmor=kernel, services=services) as world:
        app = world.client()
        profiles.say(NO, SEND, b"app", b"M")
        refused = app.reply_to(call(app, "com.example.Started"))
        assert refused.body[0].startswith("An AppArmor policy prevents this sender")
        assert refused.body[0].endswith('destination="com.example.Started" (bus)')
        assert kernel.asked[-1] == (
            SEND,
            b"label\0app\0 system\0com.example.Started\0\0/a\0com.example.I\0M",
        )
        assert f'name="com.example.Started"{world.pid(app)} label=' in world.denied()[0]
        other = app.reply_to(call(app, "com.example.Started", b"Other"))
        assert other.error_name == "org.freedesktop.DBus.Error.Spawn.ChildExited"


def test_a_label_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, kernel: FakeAppArmor) -> None:
    with mediated.world(monkeypatch, b"", b"strange", b"unconfined", apparmor=kernel) as world:
        for why in ("Protocol not available", "Invalid argument"):
            with pytest.raises(ConnectionError):
                world.client()
            assert (
                "Unable to set up new connection: Failed to get AppArmor confinement information "
                f"of socket peer: {why}"
            ) in world.lines
        assert world.client().unique_name


def test_a_kernel_that_may_not_be_asked(
    monkeypatch: pytest.MonkeyPatch, kernel: FakeAppArmor, tmp_path: Path
) -> None:
    """A sandbox of before the kernel mediated has its files read-only: the log says so."""
    assert not AppArmorFS(str(tmp_path)).may_be_asked()
    (tmp_path / ".access").touch()
    assert AppArmorFS(str(tmp_path)).may_be_asked()
    monkeypatch.setattr(kernel, "may_be_asked", lambda: False)
    with mediated.world(monkeypatch, b"unconfined", apparmor=kernel) as world:
        assert any("whoever is confined is refused" in line for line in world.lines)


@pytest.mark.parametrize(
    ("mode", "mediated_"), [("enabled", True), ("required", True), ("disabled", False)]
)
def test_modes(
    monkeypatch: pytest.MonkeyPatch, kernel: FakeAppArmor, mode: str, mediated_: bool
) -> None:
    extra = f'<apparmor mode="{mode}"/>'
    with mediated.world(monkeypatch, b"app (enforce)", apparmor=kernel, extra=extra) as world:
        app = world.client()
        asked = app.driver(
            b"Get", "ss", "org.freedesktop.DBus", "Features",
            interface=b"org.freedesktop.DBus.Properties",
        )  # fmt: skip
        features = app.reply_to(asked).body[0][1]
        assert ("AppArmor" in features) is mediated_
        assert ("AppArmor D-Bus mediation is enabled\n" in world.lines) is mediated_
        assert bool(kernel.asked) is mediated_


def test_required(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(Exception, match="AppArmor mediation required but not present"),
        mediated.world(monkeypatch, b"", extra='<apparmor mode="required"/>'),
    ):
        pass
