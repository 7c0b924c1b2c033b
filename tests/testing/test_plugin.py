"""The pytest plugin, and buses in a child process: clients that block, programs of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import clock
import pytest
from rawclient import RawClient

import jitney
from jitney.compat import errors
from jitney.testing import Bus
from jitney.testing.child import Child, ChildError

CLOCK = [sys.executable, clock.__file__]
DEBIAN_PYTHON = "/usr/bin/python3"


def mocks() -> bool:
    words = [DEBIAN_PYTHON, "-c", "import dbusmock"]
    return os.path.exists(DEBIAN_PYTHON) and subprocess.call(words, stderr=subprocess.DEVNULL) == 0


def test_a_bus_for_clients_that_block() -> None:
    with Bus(services={clock.NAME: CLOCK}) as bus, RawClient(bus.address) as client:
        client.hello()
        ask = {
            "destination": clock.NAME.encode(),
            "path": clock.PATH.encode(),
            "interface": clock.NAME.encode(),
            "member": b"Hour",
        }
        assert client.reply_to(client.message(**ask), 20).body == [12]  # type: ignore[arg-type]
        sent = bus.journal.assert_sent(type="method_call", member="Hour")
        assert sent.sender == client.unique_name
        with bus.faults.deny({"member": "Hour"}) as fault:
            denied = client.reply_to(client.message(**ask))  # type: ignore[arg-type]
            assert denied.error_name == errors.ACCESS_DENIED
            assert fault.hits == 1
        with pytest.raises(errors.DBusError, match="Unknown key"):
            bus.faults.drop({"colour": "red"})
        with pytest.raises(LookupError):
            bus.disconnect("com.example.Nobody")
        bus.disconnect(client.unique_name)
        assert client.receive() is None
        assert bus.journal.wait_for(member="Hour", verdict="deny").serial == client.serial


def test_many_buses_in_one_child() -> None:
    with Child() as child:
        with Bus(host=child) as one, Bus(host=child) as two:
            assert one.address != two.address
            with RawClient(one.address) as client:
                client.hello()
                assert list(one.names()) == [client.unique_name]
                assert two.names() == {}
        assert not os.path.exists(one.address.partition("=")[2].partition(",")[0])


def test_a_child_that_died_is_told() -> None:
    with Child() as child, Bus(host=child) as bus:
        assert child.process is not None
        child.process.kill()
        child.process.wait()
        with pytest.raises(ChildError):
            bus.names()
        bus.journal.kept.clear()
        bus.journal.side = _Silent()


class _Silent:
    def ask(self, verb: str, *given: object) -> list[object]:
        return []


async def test_a_child_from_a_coroutine() -> None:
    async with Bus(child=True) as bus:
        service = await clock.serve(bus.address)
        assert clock.NAME in bus.names()[str(service.unique_name)]
        await bus.journal.arrival(member="RequestName")
        service.disconnect()


def run_pytest(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(textwrap.dedent(text))
    above = str(Path(jitney.__path__[0]).parent)
    paths = [above, str(Path(clock.__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
            "jitney.testing.plugin", "--strict-markers", *words, str(folder),
        ],
        cwd=folder, capture_output=True, text=True, timeout=50, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
             "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip


def test_fixtures(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        f"""
        import os
        import subprocess

        import pytest
        from jitney.testing import Deny

        seen = []

        def ask(member):
            words = ["gdbus", "call", "--session", "--dest", "com.example.Clock",
                     "--object-path", "/com/example/Clock", "--method",
                     "com.example.Clock." + member]
            return subprocess.run(words, capture_output=True, text=True)

        @pytest.mark.jitney(services={{"com.example.Clock": {CLOCK!r}}})
        class TestClock:
            def test_says_the_time(self, jitney_session_bus):
                seen.append(jitney_session_bus.address)
                assert ask("Hour").stdout == "(uint32 12,)\\n"
                jitney_session_bus.journal.assert_sent(member="Hour")

            @pytest.mark.jitney(policy=[Deny(send_interface="com.example.Clock")])
            def test_not_to_everybody(self, jitney_session_bus):
                assert os.environ["DBUS_SESSION_BUS_ADDRESS"] not in seen
                assert not jitney_session_bus.journal.find(member="Hour")
                assert "AccessDenied" in ask("Hour").stderr

        def test_two_buses(jitney_session_bus, jitney_system_bus):
            assert os.environ["DBUS_SYSTEM_BUS_ADDRESS"] == jitney_system_bus.address
            assert jitney_session_bus.address != jitney_system_bus.address

        def test_without(monkeypatch):
            assert os.environ.get("DBUS_SESSION_BUS_ADDRESS") not in seen
        """,
    )
    if shutil.which("gdbus") is None:
        pytest.skip("gdbus is not installed")
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_failed_test_shows_the_journal(tmp_path: Path) -> None:
    done = run_pytest(
        tmp_path,
        """
        from jitney.compat.client import Client

        def test_it(jitney_bus):
            Client(jitney_bus.address).close()
            assert False
        """,
    )
    assert "Messages on jitney_bus" in done.stdout
    assert "org.freedesktop.DBus.Hello" in done.stdout, done.stdout


@pytest.mark.skipif(not mocks(), reason="python-dbusmock is not installed")
def test_dbusmock(tmp_path: Path) -> None:
    """A mock of somebody else's service, made by python-dbusmock, on a bus of ours."""
    with Bus() as bus:
        mock = subprocess.Popen(
            [DEBIAN_PYTHON, "-m", "dbusmock", "--session", "com.example.Mock", "/Mock",
             "com.example.Mock"],
            env={**bus.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        try:
            bus.journal.wait_for(
                20, member="NameAcquired", where=lambda e: e.args == ["com.example.Mock"]
            )
            with RawClient(bus.address) as client:
                client.hello()

                def ask(interface: bytes, member: bytes, signature: str = "", *values: str):  # type: ignore[no-untyped-def]
                    return client.reply_to(
                        client.message(
                            destination=b"com.example.Mock", path=b"/Mock", interface=interface,
                            member=member, signature=signature, values=values,
                        )
                    )  # fmt: skip

                added = ask(
                    b"org.freedesktop.DBus.Mock", b"AddMethod", "sssss",
                    "com.example.Mock", "Double", "i", "i", "ret = args[0] * 2",
                )  # fmt: skip
                assert added.error_name is None, added.body
                assert ask(b"com.example.Mock", b"Double", "i", 21).body == [42]
                with bus.faults.reply_with_error({"member": "Double"}, "com.example.Error.No"):
                    assert ask(b"com.example.Mock", b"Double", "i", 1).error_name == (
                        "com.example.Error.No"
                    )
            bus.journal.assert_sent(2, type="method_call", member="Double")
        finally:
            mock.terminate()
            mock.wait(10)
