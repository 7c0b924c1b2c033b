"""SELinux on a whole bus: who may say what to whom, and what is written of it.

The policy is made up (tests/mediated.py); nothing here needs a kernel with SELinux.
"""

from __future__ import annotations

from collections.abc import Iterator

import mediated
import pytest
from mediated import ACQUIRE, BUS, SEND, FakeSELinux, World, call, may_not_own, next_of, owns

from jitney.compat import wire
from jitney.compat.security.audit import USER_AVC, USER_POLICY_LOAD, USER_STATUS

A, B, C = b"u:r:a_t:s0", b"u:r:b_t:s0", b"u:r:c_t:s0"
DENIED = (
    "An SELinux policy prevents this sender from sending this message to this recipient, "
    '0 matched rules; type="{type}", sender="{sender}" (uid='
)


def policy(**more: bool) -> FakeSELinux:
    """All may talk to the bus, which also lets everybody own names; A and B to each other."""
    kernel = FakeSELinux(**more)
    kernel.allow = {(who, BUS, bit) for who in (A, B, C) for bit in (SEND, ACQUIRE)}
    kernel.allow |= {(A, B, SEND), (B, A, SEND)}
    return kernel


@pytest.fixture
def kernel() -> FakeSELinux:
    return policy()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, kernel: FakeSELinux) -> Iterator[World]:
    extra = '<selinux><associate own="com.example.Labelled" context="u:r:name_t:s0"/></selinux>'
    with mediated.world(monkeypatch, A, B, C, selinux=kernel, extra=extra) as world:
        yield world


def test_a_call_and_its_reply(world: World) -> None:
    a, b = world.client(), world.client()
    serial = call(a, b.unique_name)
    got = next_of(b, wire.CALL)
    b.message(wire.RETURN, destination=a.unique_name.encode(), reply_serial=got.serial)
    assert a.reply_to(serial).type == wire.RETURN
    assert world.denied() == []


def test_what_is_denied(world: World) -> None:
    a, _b, c = world.client(), world.client(), world.client()
    refused = a.reply_to(call(a, c.unique_name))
    assert refused.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    text = refused.body[0]
    assert text.startswith(DENIED.format(type="method_call", sender=a.unique_name))
    assert ' interface="com.example.I" member="M" error name="(unset)" requested_reply="0" ' in text
    assert f'destination="{c.unique_name}" (uid=' in text
    pid, peer = world.pid(a, "spid"), world.pid(a, "tpid")
    assert world.records == [
        (
            USER_AVC,
            (
                "avc:  denied  { send_msg } for msgtype=method_call interface=com.example.I "
                f"member=M dest={c.unique_name}{pid}{peer} scontext=u:r:a_t:s0 "
                "tcontext=u:r:c_t:s0 tclass=dbus permissive=0"
            ),
        )
    ]
    # Each time.
    a.reply_to(call(a, c.unique_name))
    assert len(world.records) == 2
    c.driver(b"GetId")
    assert next_of(c, wire.RETURN).body  # and nothing came before it


def test_replies_are_asked_about(world: World, kernel: FakeSELinux) -> None:
    kernel.allow.add((A, C, SEND))
    a, _, c = world.client(), world.client(), world.client()
    serial = call(a, c.unique_name)
    got = next_of(c, wire.CALL)
    c.message(
        wire.ERROR, destination=a.unique_name.encode(), reply_serial=got.serial,
        error_name=b"com.example.E",
    )  # fmt: skip
    assert "An SELinux policy" in next_of(c, wire.ERROR).body[0]
    assert "msgtype=error error_name=com.example.E dest=" in world.denied()[0]
    kernel.allow.add((C, A, SEND))
    kernel.changed()
    c.message(wire.RETURN, destination=a.unique_name.encode(), reply_serial=got.serial)
    assert a.reply_to(serial).type in (wire.RETURN, wire.ERROR)


def test_broadcasts_reach_those_who_may_hear(world: World) -> None:
    a, b, c = world.client(), world.client(), world.client()
    for client in (b, c):
        client.reply_to(client.driver(b"AddMatch", "s", "interface='com.example.I'"))
    a.message(wire.SIGNAL, destination=None, path=b"/a", interface=b"com.example.I", member=b"S")
    assert next_of(b, wire.SIGNAL).member == "S"
    c.driver(b"GetId")
    last = c.receive()
    assert last is not None
    assert last.type == wire.RETURN
    assert (
        "msgtype=signal interface=com.example.I member=S dest=org.freedesktop.DBus"
        in (world.denied()[0])
    )


def test_the_bus_itself(world: World, kernel: FakeSELinux) -> None:
    a = world.client()
    kernel.allow.discard((A, BUS, SEND))
    kernel.changed()
    refused = a.reply_to(a.driver(b"GetId"))
    assert 'destination="org.freedesktop.DBus" (bus)' in refused.body[0]
    assert "An SELinux policy" in refused.body[0]
    found = world.denied()[-1]
    assert f"dest=org.freedesktop.DBus{world.pid(a, 'spid')} scontext=" in found
    assert "tpid" not in found
    assert "tcontext=" + BUS.decode() in found


def test_hello(world: World, kernel: FakeSELinux) -> None:
    kernel.allow.discard((A, BUS, SEND))
    stranger = world.client(hello=False)
    refused = stranger.reply_to(stranger.driver(b"Hello"))
    assert "An SELinux policy" in refused.body[0]
    kernel.allow.add((A, BUS, SEND))
    kernel.changed()
    assert stranger.hello()


def test_names(world: World, kernel: FakeSELinux) -> None:
    a = world.client()
    assert owns(a, "com.example.Any")
    assert may_not_own(a, "com.example.Labelled", "SELinux")
    pid = world.pid(a, "spid")
    assert world.denied() == [
        (
            f"avc:  denied  {{ acquire_svc }} for service=com.example.Labelled{pid} "
            "scontext=u:r:a_t:s0 tcontext=u:r:name_t:s0 tclass=dbus permissive=0"
        )
    ]
    kernel.allow.add((A, b"u:r:name_t:s0", ACQUIRE))
    kernel.changed()
    assert owns(a, "com.example.Labelled")


def test_what_is_kept(world: World, kernel: FakeSELinux) -> None:
    """The kernel is asked once for two contexts, whatever is said between them, until its policy
    changes; and then at once."""
    a, b = world.client(), world.client()
    for _ in range(20):
        call(a, b.unique_name, flags=1)
        assert next_of(b, wire.CALL)
    asked = kernel.asked
    for _ in range(20):
        call(a, b.unique_name, flags=1)
        assert next_of(b, wire.CALL)
    assert kernel.asked == asked
    assert world.denied() == []
    kernel.allow.discard((A, B, SEND))
    kernel.changed()
    assert a.reply_to(call(a, b.unique_name)).type == wire.ERROR
    kinds = [kind for kind, _ in world.records]
    assert kinds == [USER_POLICY_LOAD, USER_AVC]
    assert world.records[0][1] == "avc:  op=load_policy lsm=selinux seqno=2 res=1"


def test_a_new_policy_has_the_configuration_read_again(world: World, kernel: FakeSELinux) -> None:
    a = world.client()
    reloads: list[bool] = []
    service = world.host.service
    assert service is not None
    service.front.mediation.reload_soon = lambda: reloads.append(True)
    kernel.changed()
    a.reply_to(a.driver(b"GetId"))
    a.reply_to(a.driver(b"GetId"))
    assert reloads == [True]


def test_permissive(world: World, kernel: FakeSELinux) -> None:
    """What is denied passes, and is written down once."""
    a, _b, c = world.client(), world.client(), world.client()
    kernel.enforcing = False
    kernel.changed(load=False)
    for _ in range(3):
        call(a, c.unique_name, flags=1)
        assert next_of(c, wire.CALL)
    assert [kind for kind, _ in world.records] == [USER_STATUS, USER_AVC]
    assert world.records[0][1] == "avc:  op=setenforce lsm=selinux enforcing=0 res=1"
    assert world.records[1][1].endswith("tclass=dbus permissive=1")
    kernel.enforcing = True
    kernel.changed(load=False)
    assert a.reply_to(call(a, c.unique_name)).type == wire.ERROR


def test_a_permissive_domain(world: World, kernel: FakeSELinux) -> None:
    kernel.permissive = {A}
    a, _b, c = world.client(), world.client(), world.client()
    for _ in range(2):
        call(a, c.unique_name, flags=1)
        assert next_of(c, wire.CALL)
    assert [text.rpartition(" ")[2] for text in world.denied()] == ["permissive=1"]
    call(c, a.unique_name)
    assert "An SELinux policy" in next_of(c, wire.ERROR).body[0]


def test_dontaudit_and_auditallow(world: World, kernel: FakeSELinux) -> None:
    kernel.dontaudit = SEND
    kernel.audit_allow = ACQUIRE
    a, _b, c = world.client(), world.client(), world.client()
    assert a.reply_to(call(a, c.unique_name)).type == wire.ERROR
    assert world.denied() == []
    a.reply_to(a.driver(b"RequestName", "su", "com.example.Any", 0))
    assert world.denied()[0].startswith(
        "avc:  granted  { acquire_svc } for service=com.example.Any"
    )


def test_an_unknown_class(monkeypatch: pytest.MonkeyPatch, kernel: FakeSELinux) -> None:
    kernel.known = False
    with mediated.world(monkeypatch, A, C, selinux=kernel) as world:
        a, c = world.client(), world.client()
        call(a, c.unique_name, flags=1)
        assert next_of(c, wire.CALL)
        assert "Unknown class dbus" in world.lines
        kernel.deny_unknown = True
        kernel.changed()
        assert a.reply_to(call(a, c.unique_name)).type == wire.ERROR


def test_a_context_that_the_policy_does_not_know(world: World, kernel: FakeSELinux) -> None:
    kernel.allow.add((A, C, SEND))
    a, _b, c = world.client(), world.client(), world.client()
    kernel.invalid = {C}
    kernel.changed()
    assert a.reply_to(call(a, c.unique_name)).type == wire.ERROR
    assert "SELinux denying due to: Invalid argument" in world.lines
    kernel.enforcing = False
    kernel.changed(load=False)
    call(a, c.unique_name, flags=1)
    assert next_of(c, wire.CALL)


def test_without_a_status_page_the_kernel_is_asked_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = policy(mapped=False)
    with mediated.world(monkeypatch, A, B, selinux=kernel) as world:
        a, b = world.client(), world.client()
        call(a, b.unique_name, flags=1)
        assert next_of(b, wire.CALL)
        kernel.allow.discard((A, B, SEND))
        assert a.reply_to(call(a, b.unique_name)).type == wire.ERROR
        kernel.enforcing = False
        call(a, b.unique_name, flags=1)
        assert next_of(b, wire.CALL)


def test_who_has_no_context_does_not_get_in(
    monkeypatch: pytest.MonkeyPatch, kernel: FakeSELinux
) -> None:
    with mediated.world(monkeypatch, b"", A, selinux=kernel) as world:
        with pytest.raises(ConnectionError):
            world.client()
        assert (
            "Unable to set up new connection: Failed to read an SELinux context from connection"
            in world.lines
        )
        assert world.client().unique_name


def test_a_service_that_is_started_has_its_own_context(
    monkeypatch: pytest.MonkeyPatch, kernel: FakeSELinux
) -> None:
    """Nothing is asked before it is there."""
    services = {"com.example.Late": "/bin/true"}
    with mediated.world(monkeypatch, A, C, B, selinux=kernel, services=services) as world:
        for allowed, label in ((False, C), (True, B)):
            a = world.clients[0] if world.clients else world.client()
            serial = call(a, "com.example.Late")
            a.reply_to(a.driver(b"GetId"))
            assert world.denied() == []
            service = world.client()
            asked = service.driver(b"RequestName", "su", "com.example.Late", 0)
            if allowed:
                assert next_of(service, wire.CALL).member == "M"
            assert service.reply_to(asked).body == [1]
            if not allowed:
                assert "An SELinux policy" in a.reply_to(serial).body[0]
                assert f"tcontext={label.decode()}" in world.denied()[0]
                service.reply_to(service.driver(b"ReleaseName", "s", "com.example.Late"))


def test_what_the_driver_tells(world: World) -> None:
    a, b = world.client(), world.client()

    def context(name: str) -> bytes:
        found = a.reply_to(a.driver(b"GetConnectionSELinuxSecurityContext", "s", name))
        return bytes(found.body[0])

    assert context(b.unique_name) == B
    assert context("org.freedesktop.DBus") == BUS
    asked = a.driver(
        b"Get", "ss", "org.freedesktop.DBus", "Features",
        interface=b"org.freedesktop.DBus.Properties",
    )  # fmt: skip
    assert a.reply_to(asked).body[0][1] == [
        "ActivatableServicesChanged", "HeaderFiltering", "SELinux",
    ]  # fmt: skip


def test_the_policy_decides_first(world: World) -> None:
    """Before the configuration's own policy, whose words are others."""
    a = world.client()
    assert may_not_own(a, "com.example.Labelled", "SELinux")
