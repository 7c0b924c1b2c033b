"""A bus of docs/native.md for the client's tests, in the test's own loop.

Invariant: each test has a bus of its own; when it ends, all of its sockets are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jitney.broker.kdbus.domain import Domain
from jitney.client import Connection, connect, make_bus
from jitney.kdbus.native.front import Front

Opener = Callable[..., Awaitable[Connection]]


@pytest.fixture(params=["seqpacket", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "stream")


@pytest_asyncio.fixture
async def front(tmp_path: Path, stream: bool) -> AsyncIterator[Front]:
    made = Front(Domain(), str(tmp_path / "bus"), stream)
    made.start(asyncio.get_running_loop())
    try:
        yield made
    finally:
        made.close()


@pytest_asyncio.fixture
async def bus(front: Front) -> AsyncIterator[Any]:
    """A bus with room for signals of 8 byte filters; `path` is its node."""
    async with await make_bus(front.directory, "test", bloom_size=8, bloom_hashes=1) as node:
        yield node


@pytest_asyncio.fixture
async def conn(bus: Any) -> AsyncIterator[Opener]:
    """Opens connections, which are closed at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(**options: Any) -> Connection:
            options.setdefault("pool_size", 1 << 20)
            return await stack.enter_async_context(await connect(bus.path, **options))

        yield opened
