"""Metrics as they are read: a format that others can parse, no unique names, and readers who do
harm to nobody but themselves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import buses
import pytest
from rawclient import connected
from waiting import until

from jitney.compat import cli, openmetrics, places, wire

parser = pytest.importorskip("prometheus_client.openmetrics.parser")
classic = pytest.importorskip("prometheus_client.parser")

UID = str(os.getuid())
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextlib.contextmanager
def running(*options: str, extra: str = "") -> Iterator[buses.Daemon]:
    with buses.running([*buses.jitney_command(), *options], extra=extra) as bus:
        yield bus


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "metrics")


def connect(where: str | int) -> socket.socket:
    if isinstance(where, int):
        return socket.create_connection(("127.0.0.1", where), 30)
    sock = socket.socket(socket.AF_UNIX)
    # With a timeout, connect() would not wait for its turn.
    sock.connect(where)
    sock.settimeout(30)
    return sock


def http(where: str | int, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    with connect(where) as sock:
        sock.sendall(request)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    return answer


def samples(text: str) -> Samples:
    """By name and labels, parsed by somebody else."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(where: str | int) -> Samples:
    # The text that was made for somebody else may be a second old.
    time.sleep(1.1)
    head, _, body = http(where).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"application/openmetrics-text; version=1.0.0" in head
    assert f"Content-Length: {len(body)}".encode() in head
    return samples(body.decode())


def value(found: Samples, name: str, /, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0)


def test_what_is_counted(path: str) -> None:
    with running(f"--metrics=unix:{path}") as bus:
        assert os.stat(path).st_mode & 0o777 == 0o600
        with connected(bus.address, "a.b") as one, connected(bus.address) as two:
            before = read(path)
            assert value(before, "jitney_connections") == 2
            for _ in range(10):
                serial = two.message(destination=b"a.b", path=b"/", interface=b"a.b", member=b"M")
                while (message := one.receive()) is None or message.member != "M":
                    pass
                one.message(wire.RETURN, destination=two.unique_name.encode(), reply_serial=serial)
                two.reply_to(serial)
            found = read(path)

            def grown(name: str, /, **labels: str) -> float:
                return value(found, name, **labels) - value(before, name, **labels)

            assert grown("jitney_user_messages_sent_total", uid=UID, type="method_call") == 10
            assert grown("jitney_user_messages_sent_total", uid=UID, type="method_return") == 10
            assert grown("jitney_name_messages_sent_total", name="a.b", type="method_return") == 10
            assert (
                grown("jitney_name_messages_received_total", name="a.b", type="method_call") == 10
            )
            assert grown("jitney_name_messages_sent_total", name="a.b", type="method_call") == 0
            assert grown("jitney_user_reply_seconds_count", uid=UID) == 10
            assert grown("jitney_name_reply_seconds_count", name="a.b") == 10
            assert grown("jitney_messages_total") == 20
            # Who owns the name now does not answer for what was done by that name before.
            two.reply_to(two.driver(b"RequestName", "su", "a.c", 0))
            one.reply_to(one.driver(b"ReleaseName", "s", "a.b"))
            two.reply_to(two.driver(b"RequestName", "su", "a.b", 0))
            for _ in range(5):
                two.reply_to(two.driver(b"GetId"))
            later = read(path)
        labels = {"name": "a.b", "type": "method_call"}
        # RequestName and ReleaseName may count as the owner's.
        calls = value(later, "jitney_name_messages_sent_total", **labels)
        assert calls - value(found, "jitney_name_messages_sent_total", **labels) in (5, 6, 7)
        assert value(later, "jitney_name_messages_sent_total", name="a.c", type="method_call") <= 8
        # They are gone, what they did is not.
        after = read(path)
        assert value(after, "jitney_connections") == 0
        for (name, key), number in later.items():
            if name.endswith(("_total", "_count", "_sum", "_bucket")):
                assert after[name, key] >= number, name
        assert not any(re.search(r":1\.", text) for _, key in after for _, text in key)
    assert not os.path.exists(path)


def test_refusals(path: str) -> None:
    extra = (
        '<policy context="default"><deny send_destination="a.b" send_interface="a.i"'
        ' send_member="Off"/></policy>'
        '<limit name="max_match_rules_per_connection">1</limit>'
    )
    with (
        running(f"--metrics=unix:{path}", extra=extra) as bus,
        connected(bus.address, "a.b") as one,
    ):
        one.reply_to(one.message(destination=b"a.b", path=b"/", interface=b"a.i", member=b"Off"))
        for _ in range(3):
            one.reply_to(one.driver(b"AddMatch", "s", ""))
        found = read(path)
        refusals = "jitney_user_refusals_total"
        assert value(found, refusals, uid=UID, reason="policy") == 1
        assert value(found, refusals, uid=UID, reason="limit") == 2
        assert value(found, "jitney_name_refusals_total", name="a.b", reason="policy") == 1


def test_started_services(path: str) -> None:
    with running(f"--metrics=unix:{path}") as bus, connected(bus.address) as one:
        (bus.directory / "services" / "a.s.service").write_text(
            "[D-BUS Service]\nName=a.s\nExec=/bin/false\n"
        )
        one.reply_to(one.driver(b"ReloadConfig"))
        one.reply_to(one.driver(b"StartServiceByName", "su", "a.s", 0))
        found = read(path)
        assert value(found, "jitney_name_activations_total", name="a.s", outcome="failed") == 1
        assert value(found, "jitney_user_activations_total", uid=UID) == 1


def test_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "jitney.prom"
    with running(f"--metrics=textfile:{file}"):
        until(file.exists, "it is written")
        text = file.read_text()
    found = {
        sample.name: sample.value
        for family in classic.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["jitney_start_time_seconds"] > 0
    assert "# TYPE jitney_messages_total counter" in text
    assert file.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["jitney.prom"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        running(f"--metrics=textfile:{tmp_path}/none/jitney.prom") as bus,
        connected(bus.address) as one,
    ):
        one.reply_to(one.driver(b"GetId"))


def started_on_a_port(stack: ExitStack) -> int:
    """Others look for free ports, too, and may be faster."""
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = int(sock.getsockname()[1])
        try:
            stack.enter_context(running(f"--metrics=tcp:127.0.0.1:{port}"))
        except RuntimeError as error:
            if "in use" not in str(error):
                raise
        else:
            return port
    raise AssertionError("there is no free port")


def test_tcp_on_loopback() -> None:
    with ExitStack() as stack:
        port = started_on_a_port(stack)
        assert value(read(port), "jitney_connections") == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 30)


@pytest.mark.parametrize(
    "place",
    ["tcp:0.0.0.0:9", "tcp::9", "tcp:127.0.0.1:", "tcp:127.0.0.1:99999", "tcp:localhost:80",
     "unix:relative", "textfile:", "http:x"],
)  # fmt: skip
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(ValueError, match=re.escape(place)):
        places.check(place)
    with pytest.raises(cli.Exit) as refused:
        cli.parse(["--session", f"--metrics={place}"])
    assert refused.value.status == 1


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="Failed to serve metrics"),
        running(f"--metrics=unix:{tmp_path}/no/such/folder"),
    ):
        pass


def test_requests(path: str) -> None:
    with running(f"--metrics=unix:{path}"):
        assert http(path, b"GET / HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 OK")
        assert http(path, b"GET /metrics?x=1 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        assert http(path, b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
        assert http(path, b"GET /etc/passwd HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404")
        assert http(path, b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405")
        assert http(path, b"\r\n\r\n").startswith(b"HTTP/1.1 405")
        with contextlib.suppress(ConnectionError):
            assert http(path, b"GET /" + b"x" * 100_000) == b""
        assert http(path).startswith(b"HTTP/1.1 200 OK")


def test_stuck_and_hostile_readers(path: str) -> None:
    """Those who say nothing, ask and do not read, or come again and again: the bus goes on, others
    get their answer, and nothing is left open."""
    with running(f"--metrics=unix:{path}") as bus, connected(bus.address) as one:
        for i in range(500):
            one.driver(b"RequestName", "su", f"a.n{i}", 0, flags=wire.NO_REPLY)
        one.reply_to(one.driver(b"GetId"))
        descriptors = len(os.listdir(f"/proc/{bus.pid}/fd"))
        stuck = []
        for i in range(60):
            sock = connect(path)
            if i % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            stuck.append(sock)
            one.reply_to(one.driver(b"GetId"))
        assert len(os.listdir(f"/proc/{bus.pid}/fd")) <= descriptors + 2 * places.READERS
        assert len(http(path)) > 100_000
        for sock in stuck:
            sock.close()
        for _ in range(200):
            connect(path).close()
        one.reply_to(one.driver(b"GetId"))
        assert http(path).startswith(b"HTTP/1.1 200 OK")
        until(lambda: len(os.listdir(f"/proc/{bus.pid}/fd")) <= descriptors)


def test_a_reader_has_its_time(path: str) -> None:
    with running(f"--metrics=unix:{path}"):
        started = time.monotonic()
        with connect(path) as silent, contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        assert time.monotonic() - started > 2


def test_nothing_is_counted(path: str) -> None:
    with (
        running("--no-metrics", f"--metrics=unix:{path}") as bus,
        connected(bus.address, "a.b") as one,
    ):
        one.reply_to(one.driver(b"GetId"))
        found = read(path)
        assert value(found, "jitney_connections") == 1
        assert not any(name.startswith("jitney_name_messages") for name, _ in found)
        reply = one.reply_to(one.driver(b"GetPeer", "s", "", interface=b"org.jitney.Inspect1"))
        assert '"sent"' not in reply.body[0]


@pytest.mark.parametrize("file", ["grafana.json", "alerts.yml"])
def test_what_docs_ask_for_is_there(file: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / file).read_text()
    if file.endswith(".json"):
        json.loads(text)
    kinds = openmetrics.Families().kinds
    known = set()
    for name, (kind, _) in kinds.items():
        known.add(f"{name}_total" if kind == "counter" else name)
        if kind == "histogram":
            known |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    asked = set(re.findall(r"\bjitney_\w+", text))
    assert len(asked) > 5
    assert asked <= known
