"""Tests of a real service on a bus of their own; `pytest docs/examples/test_clock.py` runs them.

They need jitney, pytest, pytest-asyncio and dbus-fast, the first of them gdbus as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import Message
from dbus_fast.aio import MessageBus

from jitney.testing import Bus, Deny

sys.path.insert(0, str(Path(__file__).parent))
import clock

NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
PROGRAM = [sys.executable, clock.__file__]


# Programs, as they are: the bus starts the service when somebody calls it.


@pytest.mark.jitney(services={clock.NAME: PROGRAM})
def test_it_is_started_when_it_is_asked(jitney_session_bus: Bus) -> None:
    said = subprocess.run(
        ["gdbus", "call", "--session", "--dest", clock.NAME, "--object-path", clock.PATH,
         "--method", f"{clock.NAME}.Hour"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "(uint32 12,)\n"
    jitney_session_bus.journal.assert_sent(1, type="method_call", member="Hour")


# In one process: every step can be awaited, and nothing is left to luck.


@contextlib.asynccontextmanager
async def clock_and_client(**options: Any) -> AsyncIterator[tuple[Bus, MessageBus]]:
    async with Bus(**options) as bus:
        service = await clock.serve(bus.address)
        client = await MessageBus(bus_address=bus.address).connect()
        yield bus, client
        client.disconnect()
        service.disconnect()


async def call(client: MessageBus, member: str, *hour: int) -> Message:
    reply = await client.call(
        Message(
            destination=clock.NAME, path=clock.PATH, interface=clock.NAME, member=member,
            signature="u" * len(hour), body=list(hour),
        )
    )  # fmt: skip
    assert reply is not None
    return reply


@pytest.mark.asyncio
async def test_everybody_hears_of_a_change() -> None:
    async with clock_and_client() as (bus, client):
        await call(client, "Set", 7)
        bus.journal.assert_sent(1, member="Changed", sender=clock.NAME, args=[7])
        bus.journal.assert_order({"member": "Set"}, {"member": "Changed"})


@pytest.mark.asyncio
async def test_a_client_of_a_service_that_crashes() -> None:
    async with clock_and_client() as (bus, client):
        bus.faults.disconnect({"member": "Hour"})
        assert (await call(client, "Hour")).error_name == NO_REPLY


@pytest.mark.asyncio
async def test_a_client_does_not_wait_for_ever() -> None:
    async with clock_and_client() as (bus, client):
        with bus.faults.drop({"member": "Hour"}) as lost:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call(client, "Hour"), 0.1)
            assert lost.hits == 1
        assert (await call(client, "Hour")).body == [12]


@pytest.mark.asyncio
async def test_the_policy_that_we_ship() -> None:
    rule = Deny(send_interface=clock.NAME, send_member="Set")
    async with clock_and_client(policy=[rule]) as (_, client):
        assert (await call(client, "Hour")).body == [12]
        assert (await call(client, "Set", 1)).error_name == ACCESS_DENIED
