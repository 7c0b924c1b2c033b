"""Each fault, as the peers see it; the bus is in this process."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import AsyncIterator
from typing import Any

import clock
import pytest
from dbus_fast import DBusError, Message, MessageType
from dbus_fast.aio import MessageBus

from jitney.compat import errors
from jitney.testing import Allow, Bus, Deny


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    async with Bus() as bus:
        yield bus


async def connected(bus: Bus) -> MessageBus:
    return await MessageBus(bus_address=bus.address).connect()


def call(member: str, signature: str = "", *body: Any, dest: str = clock.NAME) -> Message:
    return Message(
        destination=dest,
        path=clock.PATH,
        interface=clock.NAME,
        member=member,
        signature=signature,
        body=list(body),
    )


async def both(bus: Bus) -> tuple[MessageBus, MessageBus]:
    return await clock.serve(bus.address), await connected(bus)


async def asked(client: MessageBus, message: Message) -> Message:
    reply = await asyncio.wait_for(client.call(message), 10)
    assert reply is not None
    return reply


async def test_without_faults(bus: Bus) -> None:
    service, client = await both(bus)
    assert (await asked(client, call("Hour"))).body == [12]
    entry = bus.journal.assert_sent(1, type="method_call", member="Hour", destination=clock.NAME)
    assert entry.sender == client.unique_name
    assert entry.receiver == service.unique_name
    assert entry.verdict == "passed"
    reply = bus.journal.reply_to(entry)
    assert reply is not None
    assert (reply.sender, reply.args) == (service.unique_name, [12])
    assert clock.NAME in bus.names()[service.unique_name]


async def test_denied(bus: Bus) -> None:
    _, client = await both(bus)
    fault = bus.faults.deny({"member": "Set"})
    refused = await asked(client, call("Set", "u", 3))
    assert refused.error_name == errors.ACCESS_DENIED
    assert 'member="Set"' in refused.body[0]
    assert (await asked(client, call("Hour"))).body == [12]
    assert fault.hits == 1
    fault.remove()
    assert (await asked(client, call("Set", "u", 3))).message_type is MessageType.METHOD_RETURN
    assert [entry.verdict for entry in bus.journal.calls(member="Set")] == ["deny", "passed"]


async def test_error_in_place_of_a_reply(bus: Bus) -> None:
    service, client = await both(bus)
    with bus.faults.reply_with_error("member='Hour'", "com.example.Error.Broken", "no hands"):
        broken = await asked(client, call("Hour"))
    assert broken.error_name == "com.example.Error.Broken"
    assert broken.body == ["no hands"]
    assert broken.sender == service.unique_name
    assert (await asked(client, call("Hour"))).body == [12]


async def test_error_of_a_service_that_is_not_there(bus: Bus) -> None:
    client = await connected(bus)
    bus.faults.reply_with_error({"destination": "com.example.Nobody"})
    broken = await asked(client, call("Hour", dest="com.example.Nobody"))
    assert broken.error_name == errors.FAILED


async def test_dropped(bus: Bus) -> None:
    _, client = await both(bus)
    fault = bus.faults.drop("type='method_call',member='Hour'", times=1)
    lost = asyncio.ensure_future(client.call(call("Hour")))
    await bus.journal.arrival(member="Hour", verdict="drop")
    # What is sent later is answered, and so the other one was not only late.
    assert (await asked(client, call("Hour"))).body == [12]
    assert not lost.done()
    assert fault.hits == 1
    lost.cancel()


async def test_dropped_signals(bus: Bus) -> None:
    _, client = await both(bus)
    await client.call(
        Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="AddMatch",
            signature="s",
            body=["type='signal',member='Changed'"],
        )
    )
    heard: list[Any] = []
    client.add_message_handler(
        lambda message: heard.append(message.body) if message.member == "Changed" else None
    )
    with bus.faults.drop({"member": "Changed", "type": "signal"}):
        await asked(client, call("Set", "u", 1))
    await asked(client, call("Set", "u", 2))
    await asked(client, call("Hour"))
    assert heard == [[2]]


async def test_delayed(bus: Bus) -> None:
    _, client = await both(bus)
    bus.faults.delay({"member": "Hour"}, 0.05)
    late = asyncio.ensure_future(client.call(call("Hour")))
    # It is overtaken, and it comes.
    assert (await asked(client, call("Set", "u", 4))).message_type is MessageType.METHOD_RETURN
    assert not late.done()
    reply = await asyncio.wait_for(late, 10)
    assert reply is not None
    assert reply.body == [4]


async def test_delayed_messages_of_one_rule_keep_their_order(bus: Bus) -> None:
    _, client = await both(bus)
    with bus.faults.delay({"member": "Set"}, 0.01):
        await asyncio.gather(*(client.call(call("Set", "u", hour)) for hour in range(20)))
    assert (await asked(client, call("Hour"))).body == [19]


async def test_receiver_crashes_over_a_call(bus: Bus) -> None:
    service, client = await both(bus)
    bus.faults.disconnect({"member": "Hour"})
    reply = await asked(client, call("Hour"))
    assert reply.error_name == errors.NO_REPLY
    await asyncio.wait_for(_ended(service), 10)
    assert clock.NAME not in functools.reduce(operator.iadd, bus.names().values(), [])
    assert (await asked(client, call("Hour"))).error_name == errors.SERVICE_UNKNOWN


async def _ended(client: MessageBus) -> None:
    try:
        await client.wait_for_disconnect()
    except (EOFError, OSError):
        pass


async def test_sender_is_cut_off(bus: Bus) -> None:
    service, client = await both(bus)
    bus.faults.disconnect({"member": "Hour"}, whom="sender")
    with pytest.raises((EOFError, OSError, DBusError, TimeoutError)):
        await asyncio.gather(asked(client, call("Hour")), _raise_at_end(client))
    assert client.unique_name not in bus.names()
    assert service.unique_name in bus.names()
    assert bus.journal.calls(member="Hour")[0].verdict == "disconnect"


async def _raise_at_end(client: MessageBus) -> None:
    await client.wait_for_disconnect()
    raise EOFError


async def test_full_queue(bus: Bus) -> None:
    service, client = await both(bus)
    with bus.faults.fill_queue(clock.NAME) as fault:
        full = await asked(client, call("Hour"))
        assert full.error_name == errors.LIMITS_EXCEEDED
        assert "full message queue" in full.body[0]
        assert fault.hits == 1
        # The bus's own word to it is lost as well.
        lost = asyncio.ensure_future(service.request_name("com.example.Other"))
        await bus.journal.arrival(member="RequestName", args=["com.example.Other", 0])
        assert (await asked(client, call("Hour"))).error_name == errors.LIMITS_EXCEEDED
        assert not lost.done()
        lost.cancel()
    assert (await asked(client, call("Hour"))).body == [12]


async def test_a_full_queue_needs_a_peer(bus: Bus) -> None:
    with pytest.raises(LookupError, match=r"com\.example\.Nobody"):
        bus.faults.fill_queue("com.example.Nobody")


async def test_nonsense_is_refused_at_once(bus: Bus) -> None:
    with pytest.raises(errors.DBusError, match="Unknown key"):
        bus.faults.drop({"colour": "red"})
    with pytest.raises(ValueError, match="times"):
        bus.faults.drop("", times=0)
    with pytest.raises(ValueError, match="whom"):
        bus.faults.disconnect("", whom="everybody")


async def test_faults_stay_on_their_bus(bus: Bus) -> None:
    bus.faults.deny({"member": "Hour"})
    async with Bus() as other:
        _, client = await both(other)
        assert (await asked(client, call("Hour"))).body == [12]
        assert not bus.journal.find(member="Hour")


async def test_policy_and_limits() -> None:
    async with Bus(
        policy=[
            Deny(send_interface=clock.NAME),
            Allow(send_interface=clock.NAME, send_member="Hour"),
        ],
        limits={"max_match_rules_per_connection": 1},
    ) as bus:
        _, client = await both(bus)
        assert (await asked(client, call("Hour"))).body == [12]
        refused = await asked(client, call("Set", "u", 1))
        assert refused.error_name == errors.ACCESS_DENIED
        assert any("bus.conf" in text for severity, text in bus.log() if severity == "security")
        add = {"path": "/org/freedesktop/DBus", "interface": "org.freedesktop.DBus"}
        for expected in (MessageType.METHOD_RETURN, MessageType.ERROR):
            reply = await client.call(
                Message(
                    destination="org.freedesktop.DBus", member="AddMatch",
                    signature="s", body=["member='A'"], **add,
                )
            )  # fmt: skip
            assert reply is not None
            assert reply.message_type is expected


async def test_journal_tells_what_it_misses(bus: Bus) -> None:
    _, client = await both(bus)
    await asked(client, call("Set", "u", 5))
    await asked(client, call("Hour"))
    journal = bus.journal
    journal.assert_order({"member": "Set", "args": [5]}, {"member": "Changed"}, {"member": "Hour"})
    journal.assert_not_sent(member="Reset")
    with pytest.raises(AssertionError, match=r"(?s)member='Reset'.*com\.example\.Clock\.Hour"):
        journal.assert_sent(member="Reset")
    with pytest.raises(AssertionError, match="1 messages, not 2"):
        journal.assert_sent(2, type="method_call", member="Hour")
    with pytest.raises(AssertionError, match="after"):
        journal.assert_order({"member": "Hour"}, {"member": "Set"})
    with pytest.raises(AssertionError, match="no message came"):
        await journal.arrival(0.01, member="Reset")
    with pytest.raises(RuntimeError, match="arrival"):
        journal.wait_for(member="Hour")
    journal.clear()
    assert not journal.find(member="Hour")


async def test_nothing_is_left_behind() -> None:
    import os

    before = len(os.listdir("/proc/self/fd"))
    async with Bus() as bus:
        path = bus.address.partition("=")[2].partition(",")[0]
        client = await connected(bus)
        assert os.path.exists(path)
    await asyncio.wait_for(_ended(client), 10)
    client.disconnect()
    assert not os.path.exists(os.path.dirname(path))
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(bus.journal) > 0
