"""What the daemon's process is spared, and that nobody else misses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import buses
import pytest
from rawclient import RawClient

# Shared objects that stand for them in /proc/PID/maps.
PYDANTIC, SSL = "pydantic_core", "_ssl."


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def maps(pid: int | str) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_asyncio_does_without() -> None:
    code = (
        "from jitney.compat.without_ssl import import_asyncio\n"
        "import_asyncio()\n"
        "import os, sys, asyncio, asyncio.sslproto\n"
        "assert 'ssl' not in sys.modules\n"
        "assert asyncio.sslproto.ssl is None\n"
        "import ssl\n"
        "assert ssl.SSLContext\n"
        "async def main():\n"
        "    name = f'\\0jitney-{os.getpid()}'\n"
        "    server = await asyncio.start_unix_server(print, name)\n"
        "    server.close()\n"
        "    return 'fine'\n"
        "print(asyncio.run(main()))\n"
    )
    assert python(code) == "fine"


@pytest.mark.parametrize("first", ["ssl", "asyncio", "ssl, asyncio"])
def test_what_is_loaded_already_stays(first: str) -> None:
    code = (
        f"import {first}\n"
        "from jitney.compat.without_ssl import import_asyncio\n"
        "import_asyncio()\n"
        "import sys, asyncio.sslproto\n"
        "print(sys.modules['ssl'] is asyncio.sslproto.ssl is not None)\n"
    )
    assert python(code) == "True"


def test_the_daemon_is_spared_the_checker_and_ssl(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import pydantic, ssl; print(open('/proc/self/maps').read())"
    heavy = python(code)
    if SSL not in heavy:
        pytest.skip("this Python has ssl built in")
    assert PYDANTIC in heavy

    monkeypatch.delenv("JITNEY_LOOP", raising=False)
    command = [sys.executable, "-m", "jitney.compat"]
    with buses.running(command) as bus, RawClient(bus.address) as client:
        client.hello()
        for _ in range(2):
            light = maps(bus.pid)
            assert PYDANTIC not in light
            assert SSL not in light
            reply = client.reply_to(client.driver(b"ReloadConfig"))
            assert reply.type == 2, reply
