"""The configuration comes out of a child as it is in the files, or as a ConfigError; never a hang,
a second bus, a lost descriptor or a process that nobody reaps."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from configs import write

from jitney.broker.policy import PolicySet
from jitney.compat.config import ConfigError, Plain, Reading, child, load, loader, read

RULES = 40000

FULL = """<type>session</type><user>nobody</user><fork/><keep_umask/><syslog/><allow_anonymous/>
<pidfile>/run/x</pidfile><servicehelper>helper</servicehelper><auth>EXTERNAL</auth>
<auth>ANONYMOUS</auth><apparmor mode="disabled"/><includedir>more</includedir>
<servicedir>services</servicedir><standard_system_servicedirs/>
<listen>unix:abstract=x;tcp:host=localhost</listen><limit name="max_names_per_connection">7</limit>
<limit name="max_containers">3</limit>
<policy user="0"><deny own="a.b"/><allow send_type="signal" send_broadcast="true"/></policy>
<policy group="no such group"><deny receive_sender="a.b" max_fds="3" eavesdrop="true"/></policy>
<policy context="mandatory"><allow user="*"/><deny group="4000009"/></policy>"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a descriptor or a child."""
    gc.collect()  # what others left, which would go in between
    before = os.listdir("/proc/self/fd"), children()
    yield
    assert (os.listdir("/proc/self/fd"), children()) == before


def children() -> str:
    """Our own, the dead that nobody waited for among them."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def full(folder: Path) -> str:
    (folder / "more").mkdir()
    (folder / "more" / "bad.conf").write_text("<nonsense/>")
    return write(folder, FULL)


def many_rules(folder: Path) -> str:
    """A file is not longer than a MiB, hence several."""
    parts = []
    for i in range(0, RULES, 10000):
        rules = (f'<allow send_destination="com.example.S{i + n}"/>' for n in range(10000))
        part = folder / f"{i}.conf"
        part.write_text(
            '<busconfig><policy context="default">\n' + "\n".join(rules) + "</policy></busconfig>"
        )
        parts.append(f"<include>{part}</include>")
    return write(folder, "".join(parts))


def same_as_loaded(plain: Plain, path: str) -> None:
    config = load(path)
    assert plain.addresses == tuple(entry.address for entry in config.listen)
    assert [tuple(x) for x in plain.service_dirs] == [
        (x.path, x.watched, x.strict) for x in config.service_dirs
    ]
    assert [(x.file, x.line, x.text) for x in plain.warnings] == [
        (x.file, x.line, x.text) for x in config.warnings
    ]
    left = {"addresses", "service_dirs", "warnings", "rules"}
    for name in set(Plain._fields) - left:
        assert getattr(plain, name) == getattr(config, name), name
    names = [name for name in dir(config.limits()) if not name.startswith("_")]
    for name in names:
        assert getattr(plain.limits(), name) == getattr(config.limits(), name)
    assert list(plain.policy_spec()) == [
        (scope, id, who, {key: value for key, value in rule.items() if value is not None})
        for scope, id, who, rule in config.policy_spec()
    ]


def rules_of(policies: PolicySet) -> list[Any]:
    kept = [policies.default, policies.mandatory, *policies.by_uid.values()]
    kept += [policies.connect_default, policies.connect_mandatory]
    kept += [*policies.unknown_users.values(), *policies.unknown_groups.values()]
    slots = (rule for rules in kept for rule in rules)
    return [[(name, getattr(rule, name)) for name in rule.__slots__] for rule in slots]


def test_everything_crosses(tmp_path: Path) -> None:
    path = full(tmp_path)
    plain = read(path)
    same_as_loaded(plain, path)
    assert plain.warnings
    assert rules_of(PolicySet(plain.policy_spec())) == rules_of(PolicySet(load(path).policy_spec()))


def test_paths_that_are_no_text_cross(tmp_path: Path) -> None:
    full(tmp_path)
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    for name in ("bus.conf", "more"):
        (tmp_path / name).rename(folder / name)
    path = f"{folder}/bus.conf"
    plain = read(path)
    same_as_loaded(plain, path)
    assert plain.include_dirs == (f"{folder}/more",)


def test_a_descriptor_is_a_path(tmp_path: Path) -> None:
    fd = os.open(write(tmp_path, "<type>odd</type>"), os.O_RDONLY)
    try:
        assert read(f"/proc/self/fd/{fd}").type == "odd"
    finally:
        os.close(fd)


def test_a_long_policy_crosses(tmp_path: Path) -> None:
    path = many_rules(tmp_path)
    plain = read(path)
    same_as_loaded(plain, path)
    assert len(PolicySet(plain.policy_spec()).default) == RULES + 1
    assert not list(plain.without_rules().policy_spec())


@pytest.mark.parametrize(
    "body",
    ["<bees/>", "<include>missing.conf</include>", "</busconfig>", "<limit name='x'>1</limit>"],
)
def test_refusals_cross(tmp_path: Path, body: str) -> None:
    path = write(tmp_path, body)
    refusals = []
    for reader in (load, read):
        with pytest.raises(ConfigError) as refused:
            reader(path)
        refusals.append((vars(refused.value), str(refused.value), refused.value.args))
    assert refusals[0] == refusals[1]
    assert refusals[0][0]["line"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Failed to open") as refused:
        read(str(tmp_path / "none"))
    assert refused.value.missing


def test_what_nobody_expected_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise LookupError("bees")

    monkeypatch.setattr(loader, "load", broken)
    path = write(tmp_path, "")
    with pytest.raises(ConfigError) as refused:
        read(path)
    assert refused.value.text == f'Failed to read configuration "{path}": LookupError: bees'


def test_child_killed_half_way(tmp_path: Path) -> None:
    reading = Reading(many_rules(tmp_path))
    # There is more to say than a pipe holds, so it cannot be through.
    select.select([reading._pipe], [], [])
    os.kill(reading._pid, signal.SIGKILL)
    with pytest.raises(ConfigError, match=r"Failed to read configuration .* killed by signal 9"):
        reading.result()


def test_a_bus_that_ends_meanwhile_leaves_no_child(tmp_path: Path) -> None:
    # There is more to say than a pipe holds. The child has our pipe, too: the last one ends it.
    script = (
        "import os, select, sys; from jitney.compat.config import Reading\n"
        "reading = Reading(sys.argv[1]); select.select([reading._pipe], [], []); os._exit(0)"
    )
    words = [sys.executable, "-c", script, many_rules(tmp_path)]
    done = subprocess.run(words, stdout=subprocess.PIPE, timeout=50, check=False)
    assert done.returncode == 0


def test_child_that_ends_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_answer", lambda path: os._exit(7))
    with pytest.raises(ConfigError, match=r"Failed to read configuration .* with status 7"):
        read(write(tmp_path, ""))


def test_child_that_cannot_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_answer", lambda path: object())
    with pytest.raises(ConfigError, match=r"Failed to read configuration .* with status 1"):
        read(write(tmp_path, ""))


@pytest.mark.parametrize("call", ["fork", "pipe"])
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_without_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    good, bad = full(tmp_path), write(tmp_path, "<bees/>", name="bad.conf")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        plain = read(good)
        with pytest.raises(ConfigError, match="Element <bees> not allowed") as refused:
            read(bad)
    assert (refused.value.file, refused.value.line) == (bad, 3)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    same_as_loaded(plain, good)


def test_where_children_are_reaped_by_themselves(tmp_path: Path) -> None:
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert read(write(tmp_path, "<type>odd</type>")).type == "odd"
    finally:
        signal.signal(signal.SIGCHLD, old)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_signals_of_the_bus_are_not_the_child_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As on a loop: a handler, and a descriptor that says there was something to handle."""
    answer = child._answer

    def hit(path: str) -> tuple[Any, ...]:
        os.kill(os.getpid(), number)
        return answer(path)

    monkeypatch.setattr(child, "_answer", hit)
    handled: list[int] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    old = signal.signal(number, lambda number, frame: handled.append(number))
    woken = signal.set_wakeup_fd(theirs.fileno())
    path = write(tmp_path, "<type>odd</type>")
    try:
        if number == signal.SIGUSR2:  # nothing that the bus handles: it has its usual effect
            with pytest.raises(ConfigError, match=f"killed by signal {number:d}"):
                read(path)
        else:
            assert read(path).type == "odd"
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        assert not handled
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(number, old)
        ours.close()
        theirs.close()


def test_an_interrupted_wait_ends_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(pipe: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "_answer", lambda path: signal.pause())
    reading = Reading(write(tmp_path, ""))
    monkeypatch.setattr(child.marshal, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reading.result()


def test_nothing_of_the_parent_happens_twice(tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "from jitney.compat.config import read\n"
        "atexit.register(lambda: print('end'))\n"
        "print('start', end=' ')\n"
        f"print(read({write(tmp_path, '<type>odd</type>')!r}).type)\n"
        "print(*{'pydantic', 'pyexpat', 'jitney.compat.config.model'} & sys.modules.keys())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("start odd\n\nend\n", "")
