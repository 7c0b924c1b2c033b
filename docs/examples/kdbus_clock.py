"""A clock on a bus of `jitney sockets`: a service, a caller and a listener, in one process.

python -m jitney.compat.command sockets /tmp/buses    (or: jitney sockets /tmp/buses)
python docs/examples/kdbus_clock.py /tmp/buses
"""

from __future__ import annotations

import asyncio
import sys
import time

from jitney.client import BloomMask, Connection, NoSuchName, connect, make_bus, sealed

NAME = "org.example.Clock"


async def serve(bus: Connection) -> None:
    """Answers every call with the time, and a call for "history" with a lot of it."""
    await bus.acquire(NAME)
    async for message in bus.messages():
        with message:
            if not message.wants_reply:
                continue
            if message.payload == b"history":
                with sealed(*(b"%d\n" % second for second in range(100_000))) as memory:
                    # Handed on as it is: nobody copies it.
                    await bus.reply(message, memory)
            else:
                await bus.reply(message, time.strftime("%H:%M").encode())


async def main(directory: str) -> None:
    async with (
        await make_bus(directory, "clock") as made,
        await connect(made.path) as service,
        await connect(made.path) as user,
    ):
        try:
            await user.call(NAME, b"now")
        except NoSuchName as error:
            print("not there yet:", error.strerror)

        serving = asyncio.create_task(serve(service))
        while NAME not in await user.names():
            await asyncio.sleep(0.01)
        with await user.call(NAME, b"now", timeout=2.0) as answer:
            print("it is", bytes(answer.payload).decode())
        with await user.call(NAME, b"history") as answer:
            print("its history has", len(answer.payload), "bytes")

        # A signal, for whoever asked for signals with this bit in their filter.
        bit = b"\x01" + bytes(user.bloom_size - 1)
        await user.add_match(BloomMask((bit,)))
        await service.signal(b"tick", bloom=(0, bit))
        with await anext(user.messages()) as signal:
            print("connection", signal.src, "says", bytes(signal.payload).decode())
        serving.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
