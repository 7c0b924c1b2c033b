"""What is kept of a policy's verdicts says yes only where the policy itself would."""

from __future__ import annotations

from typing import Any

import corebus
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.policy import ClientPolicy
from jitney.broker.policy_rules import EITHER, NO, YES, MessageRule
from jitney.compat import wire

NAMES = (b"com.example.A", b"com.example.A.B", b"com.example.C")
MAYBE = {
    "path": st.sampled_from([None, b"/a", b"/b"]),
    "interface": st.sampled_from([None, b"com.example.I", b"com.example.J"]),
    "member": st.sampled_from([None, b"M", b"S"]),
    "error": st.sampled_from([None, b"com.example.Error"]),
    "peer": st.sampled_from([None, *NAMES, b":1.0"]),
    "type": st.integers(0, 4),
    "requested_reply": st.booleans(),
    "eavesdrop": st.booleans(),
    "min_fds": st.sampled_from([0, 0, 1]),
    "log": st.booleans(),
}
SENDS = st.builds(
    lambda sparse, more: MessageRule(
        send=True, allow=more["allow"], **{k: more[k] for k in sparse}
    ),
    st.sets(st.sampled_from([*MAYBE, "prefix", "broadcast"]), max_size=3),
    st.fixed_dictionaries(
        {
            **MAYBE,
            "allow": st.booleans(),
            "prefix": st.sampled_from([None, b"com.example", b"com.example.A"]),
            "broadcast": st.sampled_from([EITHER, NO, YES]),
        }
    ),
)  # fmt: skip
RECEIVES = st.builds(
    lambda sparse, more: MessageRule(
        send=False, allow=more["allow"], **{k: more[k] for k in sparse}
    ),
    st.sets(st.sampled_from([*MAYBE]), max_size=3),
    st.fixed_dictionaries({**MAYBE, "allow": st.booleans()}),
)
MESSAGES = st.sampled_from(
    [
        corebus.call(b":1.0"),
        corebus.call(b"com.example.A"),
        corebus.message(wire.CALL, 1, path=b"/b", member=b"M", destination=b":1.0"),
        corebus.message(wire.RETURN, 1, reply_serial=5, destination=b":1.0"),
        corebus.message(
            wire.ERROR, 1, error_name=b"com.example.Error", reply_serial=5, destination=b":1.0"
        ),
        corebus.signal(destination=b":1.0"),
        corebus.signal(),
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(SENDS, max_size=6),
    st.lists(RECEIVES, max_size=6),
    st.sets(st.sampled_from(NAMES)),
    MESSAGES,
    st.booleans(),
)
def test_a_kept_yes_is_a_yes(
    sends: list[Any], receives: list[Any], names: set[bytes], msg: Any, requested: bool
) -> None:
    bus = corebus.make_bus()
    other, client = corebus.join(bus), corebus.join(bus)
    for name in names:
        bus.request_name(other, name, 0)
    policy = ClientPolicy([*sends, *receives])
    reply = bool(msg.reply_serial)
    if reply and not requested:
        return
    requested = requested and reply
    if (policy.types_to(other) >> msg.type) & 1:
        assert policy.may_send(bus, msg, other, requested)
        assert not policy.log
    addressed = client if msg.destination is not None else None
    if (policy.types_from(other) >> msg.type) & 1:
        assert policy.may_receive(bus, msg, other, addressed, client, requested)


def test_names_that_come_and_go_count() -> None:
    bus = corebus.make_bus()
    service, client = corebus.join(bus), corebus.join(bus)
    denied = ClientPolicy(
        [
            MessageRule(allow=True, send=True),
            MessageRule(allow=True, send=False),
            MessageRule(allow=False, send=True, peer=b"com.example.A"),
        ]
    )
    bus.set_policy(client, denied)

    def passes() -> bool:
        bus.dispatch(client, corebus.call(service.unique_name, passes.serial))  # type: ignore[attr-defined]
        passes.serial += 1  # type: ignore[attr-defined]
        return any(msg.type == wire.CALL for msg in corebus.received(service))

    passes.serial = 10  # type: ignore[attr-defined]
    assert passes()
    bus.request_name(service, b"com.example.A", 0)
    assert not passes()
    bus.release_name(service, b"com.example.A")
    assert passes()
    bus.set_policy(client, ClientPolicy([MessageRule(allow=False, send=True)]))
    assert not passes()
