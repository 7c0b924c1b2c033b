"""What docs/security.md promises of messages, on a running bus; and that each has its tests."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
from floods import flood
from rawclient import RawClient, Received

from jitney.compat import wire

ROOT = Path(__file__).parents[2]
ERROR = "org.freedesktop.DBus.Error."
INTERFACE = b"org.example.Promise"
RULE = "type='signal',interface='org.example.Promise'"


# ---- the table


def promises() -> list[tuple[str, list[str]]]:
    """Each line of the table: what is promised, and the tests that hold it."""
    text = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    found = [(what, re.findall(r"`([^`]+::\w+)`", tests)) for what, tests in rows]
    return [(what, tests) for what, tests in found if what not in ("promised", "---")]


def test_every_promise_has_its_tests() -> None:
    found = promises()
    assert len(found) > 12
    for what, tests in found:
        assert tests, f"nothing holds: {what}"
        for test in tests:
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / "tests" / file).read_text())
            defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            # TestCases of a state machine are assigned.
            defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert name in defined, f"there is no {test}, which is to hold: {what}"


# ---- order


@pytest.fixture
def crowd(daemon: buses.Daemon) -> Iterator[list[RawClient]]:
    clients = [RawClient(daemon.address) for _ in range(6)]
    for client in clients:
        client.hello()
    yield clients
    for client in clients:
        client.close()


def say(client: RawClient, number: int, dest: str | None = None, type: int = wire.SIGNAL) -> int:
    return client.message(
        type, destination=dest.encode() if dest else None, path=b"/", interface=INTERFACE,
        member=b"M", signature="u", values=[number], flags=1,
    )  # fmt: skip


def heard(client: RawClient, count: int) -> list[Received]:
    found = []
    while len(found) < count:
        message = client.receive()
        assert message is not None
        if message.member == "M":
            found.append(message)
    return found


def nothing_more(client: RawClient) -> None:
    """What was under way has come before the answer."""
    serial = client.driver(b"GetId")
    while (message := client.receive()) is not None and message.reply_serial != serial:
        assert message.member != "M"


def test_all_see_broadcasts_in_one_order(crowd: list[RawClient]) -> None:
    *senders, first, second = crowd
    for client in (first, second):
        client.reply_to(client.driver(b"AddMatch", "s", RULE))
    dice = random.Random(5)
    sent: Counter[str] = Counter()
    for _ in range(600):
        client = dice.choice(senders)
        sent[client.unique_name] += 1
        say(client, sent[client.unique_name])
    seen = [
        [(message.sender, message.body[0]) for message in heard(client, 600)]
        for client in (first, second)
    ]
    assert seen[0] == seen[1]
    for name, count in sent.items():
        assert [n for sender, n in seen[0] if sender == name] == list(range(1, count + 1))
    nothing_more(first)
    nothing_more(second)


def test_one_sender_is_heard_in_its_order(crowd: list[RawClient]) -> None:
    """Calls, signals to one and signals to all, of all sizes, mixed."""
    sender, receiver, *_ = crowd
    receiver.reply_to(receiver.driver(b"AddMatch", "s", RULE))
    dice = random.Random(6)
    for number in range(400):
        kind = dice.randrange(3)
        if kind == 0:
            say(sender, number)
        elif kind == 1:
            say(sender, number, receiver.unique_name)
        else:
            say(sender, number, receiver.unique_name, wire.CALL)
        if number % 50 == 0:
            flood(sender, receiver.unique_name, 1)  # behind it all waits for 100 KB
    found = []
    while len(found) < 400:
        message = receiver.receive()
        assert message is not None
        if message.member == "M" and message.signature == "u":
            found.append(message.body[0])
    assert found == list(range(400))


def test_what_came_before_the_reply_is_there_before_it(crowd: list[RawClient]) -> None:
    """A signal that the service sent before its answer, and what the bus says of a name."""
    caller, service, *_ = crowd
    caller.reply_to(caller.driver(b"AddMatch", "s", RULE))
    caller.reply_to(caller.driver(b"AddMatch", "s", "member='NameOwnerChanged'"))
    for _ in range(50):
        serial = caller.message(
            destination=service.unique_name.encode(), path=b"/", member=b"Change"
        )
        while (call := service.receive()) is not None and call.member != "Change":
            pass
        assert call is not None
        service.driver(b"RequestName", "su", "org.example.Promise", 0)
        say(service, 1)
        service.driver(b"ReleaseName", "s", "org.example.Promise")
        service.message(
            wire.RETURN, destination=caller.unique_name.encode(), reply_serial=call.serial
        )
        came = []
        while (message := caller.receive()) is not None and message.reply_serial != serial:
            came.append(message.member)
        assert came == ["NameOwnerChanged", "M", "NameOwnerChanged"]


# ---- at most once


def test_once_however_many_rules_match(crowd: list[RawClient]) -> None:
    sender, receiver, *_ = crowd
    for rule in (RULE, RULE, "type='signal'", "member='M'", "eavesdrop='true'"):
        receiver.reply_to(receiver.driver(b"AddMatch", "s", rule))
    say(sender, 1)
    say(sender, 2, receiver.unique_name)
    say(sender, 3, receiver.unique_name, wire.CALL)
    assert [message.body[0] for message in heard(receiver, 3)] == [1, 2, 3]
    nothing_more(receiver)


def test_a_second_reply_is_refused() -> None:
    """Where replies must have been asked for, as on the system bus."""
    config = buses.CONFIG.replace('<allow eavesdrop="true"/>', '<allow receive_sender="*"/>')
    config = config.replace(' eavesdrop="true"', "")
    with (
        buses.running(buses.jitney_command(), config=config) as bus,
        RawClient(bus.address) as caller,
        RawClient(bus.address) as service,
    ):
        caller.hello()
        service.hello()
        _answer_twice(caller, service)


def _answer_twice(caller: RawClient, service: RawClient) -> None:
    serial = caller.message(destination=service.unique_name.encode(), path=b"/", member=b"Ask")
    while (call := service.receive()) is not None and call.member != "Ask":
        pass
    assert call is not None
    for _ in range(2):
        service.message(
            wire.RETURN, destination=caller.unique_name.encode(), reply_serial=call.serial
        )
    assert caller.reply_to(serial).type == wire.RETURN
    check = caller.driver(b"GetId")
    came = caller.receive()
    assert came is not None
    assert came.reply_serial == check


# ---- no silent loss


def test_a_caller_is_told_when_its_service_goes(crowd: list[RawClient]) -> None:
    """Whether it had read the call or not; and afterwards that nobody is there."""
    caller, service, *_ = crowd
    serials = [
        caller.message(destination=service.unique_name.encode(), path=b"/", member=b"Ask")
        for _ in range(20)
    ]
    for _ in range(5):
        service.receive()
    service.close()
    told = {}
    while len(told) < 20:
        message = caller.receive()
        assert message is not None
        if message.reply_serial:
            told[message.reply_serial] = message.error_name
    assert told.keys() == set(serials)
    assert set(told.values()) <= {ERROR + "NoReply", ERROR + "ServiceUnknown"}
    late = caller.message(destination=service.unique_name.encode(), path=b"/", member=b"Ask")
    assert caller.reply_to(late).error_name == ERROR + "ServiceUnknown"


def test_each_unicast_arrives_or_its_sender_is_told() -> None:
    """A receiver whose queue is full: of calls, of calls without a reply, and of signals."""
    extra = '<limit name="max_outgoing_bytes">300000</limit>'
    with (
        buses.running(buses.jitney_command(), extra=extra) as bus,
        RawClient(bus.address) as sender,
        RawClient(bus.address) as reader,
    ):
        sender.hello()
        reader.hello()
        serials = {}
        for number in range(300):
            body = number.to_bytes(4, "little") + bytes(20_000)
            serial = sender.message(
                wire.SIGNAL if number % 3 == 0 else wire.CALL,
                destination=reader.unique_name.encode(), path=b"/", interface=INTERFACE,
                member=b"Big", signature="ay", values=[body], flags=number % 2,
            )  # fmt: skip
            serials[serial] = number
        check = sender.driver(b"GetId")
        told = set()
        while (message := sender.receive()) is not None and message.reply_serial != check:
            if message.reply_serial:
                assert message.error_name == ERROR + "LimitsExceeded"
                told.add(serials[message.reply_serial])
        check = reader.driver(b"GetId")
        arrived = []
        while (message := reader.receive()) is not None and message.reply_serial != check:
            if message.member == "Big":
                arrived.append(int.from_bytes(message.body[0][:4], "little"))
        assert told
        assert arrived == sorted(set(arrived))
        assert told.isdisjoint(arrived)
        assert told | set(arrived) == set(range(300))


# ---- who it is from


def test_nobody_speaks_in_anothers_name(crowd: list[RawClient]) -> None:
    liar, victim, receiver, *_ = crowd
    for name in (victim.unique_name, "org.freedesktop.DBus", ":1.99999"):
        liar.message(
            wire.SIGNAL, destination=receiver.unique_name.encode(), path=b"/",
            interface=INTERFACE, member=b"M", sender=name.encode(),
        )  # fmt: skip
        (message,) = heard(receiver, 1)
        assert message.sender == liar.unique_name


def test_a_unicast_is_its_receivers_alone(crowd: list[RawClient]) -> None:
    """Others have rules that would match; without eavesdropping they see nothing of it."""
    sender, receiver, *others = crowd
    for client in others:
        client.reply_to(client.driver(b"AddMatch", "s", RULE))
    say(sender, 1, receiver.unique_name)
    heard(receiver, 1)
    for client in others:
        nothing_more(client)
