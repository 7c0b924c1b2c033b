"""AppArmor, enforcing, decides about messages and names of jitney's as of dbus-daemon's.

The kernel and the compiled profiles (`profiles`) are real; both buses run side by side, and what
they answer, deliver and record must be the same, word for word.

Invariant: the profiles are as they were after each check.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from helpers import run, until
from two import (
    ACTORS,
    DAEMONS,
    SERVICES,
    Bus,
    Stage,
    both,
    compared,
    read,
    records,
    size,
    standing,
)  # fmt: skip

HERE = Path("/run/vm/guest")
PARSER = "/opt/apparmor/parser"
FEATURES = "/sys/kernel/security/apparmor/features"
SENDING = "An AppArmor policy prevents this sender from sending this message to this recipient"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
SERVED = [2, None, ["served"]]
CLIENT, SERVER, FREE = "vm-client", "vm-server", "unconfined"


def check_kernel() -> str:
    """Nothing is made up: the kernel says that it mediates, and it takes the profiles."""
    with open(f"{FEATURES}/dbus/mask", encoding="ascii") as file:
        assert file.read().split() == ["acquire", "send", "receive"]
    load(HERE / "profiles")
    # Later rounds look at what this boot has brought up.
    state = run("systemctl", "is-system-running", "--wait", status=None)
    failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert state == "running", failed
    return f"{os.uname().release}, {run(PARSER, '--version').splitlines()[0]}"


def check_labels() -> str:
    def scenario(stage: Stage) -> None:
        for who in (CLIENT, "vm-complain", FREE):
            stage.enter(who)
        for who, wanted in (
            (CLIENT, "vm-client (enforce)"), ("vm-complain", "vm-complain (complain)"),
            (FREE, "unconfined"),
        ):  # fmt: skip
            found = label_of(stage, stage.name(who))
            assert found == wanted.encode() + b"\0", found
        stage.note(label_of(stage, "org.freedesktop.DBus"))
        for module in ("AppArmor", "SELinux"):
            method = f"GetConnection{module}SecurityContext"
            stage.driver(FREE, method, "s", stage.name(CLIENT))

    _, written = compared(standing(), scenario)
    return str(written)


def check_sender() -> str:
    """What the sender's profile allows, allows and has recorded, denies, and denies in silence."""

    def scenario(stage: Stage) -> None:
        for who in (CLIENT, SERVER, FREE):
            stage.enter(who)
        for whom in (SERVER, FREE):
            assert stage.call(CLIENT, whom, "Ask") == [SERVED]
            assert stage.call(CLIENT, whom, "Noted") == [SERVED]
            for member in ("Forbidden", "Unsaid"):
                denied(stage.call(CLIENT, whom, member))
            denied(stage.call(CLIENT, whom, "Ask", path="/elsewhere"))
        # Who is asked once more is asked again, or known.
        assert stage.call(CLIENT, SERVER, "Ask") == [SERVED]
        denied(stage.call(CLIENT, SERVER, "Forbidden"))

    _, written = compared(standing(), scenario)
    assert verdicts(written, "Noted") == ["ALLOWED"] * 2, written
    assert verdicts(written, "Forbidden") == ["DENIED"] * 3, written
    assert not verdicts(written, "Unsaid"), written
    for part in (
        'operation="dbus_method_call"', 'bus="system"', 'path="/vm"', 'mask="send"',
        'interface="org.jitney.Vm"', 'member="Forbidden"', 'label="vm-client"',
        'peer_label="vm-server"', "pid=vm-client", "peer_pid=vm-server",
    ):  # fmt: skip
        assert any(part in line for line in written if "Forbidden" in line), (part, written)
    return "\n".join(written)


def check_receiver() -> str:
    def scenario(stage: Stage) -> None:
        for who in (CLIENT, SERVER, FREE):
            stage.enter(who)
        for who in (CLIENT, FREE):
            denied(stage.call(who, SERVER, "Unwelcome"))
            denied(stage.call(who, SERVER, "Unheard"))
            assert stage.call(who, SERVER, "Ask") == [SERVED]

    _, written = compared(standing(), scenario)
    assert verdicts(written, "Unwelcome") == ["DENIED"] * 2, written
    assert all('mask="receive"' in line for line in written if "Unwelcome" in line), written
    assert not verdicts(written, "Unheard"), written
    return "\n".join(written)


def check_replies() -> str:
    """One that was asked for asks nobody; one that was not is a message like others."""

    def scenario(stage: Stage) -> None:
        for who in (CLIENT, SERVER):
            stage.enter(who)
        stage.send(SERVER, type=2, destination=stage.name(CLIENT), reply_serial=77)
        stage.send(CLIENT, type=3, destination=stage.name(SERVER), error_name="a.B", reply_serial=8)
        for who in (CLIENT, SERVER):
            stage.drain(who)

    _, written = compared(standing(), scenario)
    return "\n".join(written)


def check_broadcasts() -> str:
    def scenario(stage: Stage) -> list[list[Any]]:
        for who in (CLIENT, SERVER, FREE):
            stage.enter(who)
        for who in (SERVER, FREE):
            stage.driver(who, "AddMatch", "s", "interface='org.jitney.Vm'")
        for member in ("Ask", "Noted", "Forbidden", "Unsaid", "Unwelcome", "Unheard"):
            stage.send(CLIENT, type=4, member=member, destination=None)
        stage.drain(CLIENT)
        return [[m[3] for m in stage.drain(who) if m[0] == 4] for who in (SERVER, FREE)]

    (server, free), written = compared(standing(), scenario)
    assert server[-2:] == ["Ask", "Noted"], server
    assert free[-4:] == ["Ask", "Noted", "Unwelcome", "Unheard"], free
    assert verdicts(written, "Unwelcome") == ["DENIED"], written
    return "\n".join(written)


def check_names() -> str:
    def scenario(stage: Stage) -> None:
        for who in (CLIENT, FREE):
            stage.enter(who)
        for name, answer in (("Free", [1]), ("Noted", [1]), ("Unsaid", None), ("Absent", None)):
            found = stage.driver(CLIENT, "RequestName", "su", f"org.jitney.Vm.{name}", 4)
            if answer is None:
                assert found[0] == DENIED, found
                assert "is not allowed to own the service" in found[1], found
            else:
                assert found == answer, found
        assert stage.driver(FREE, "RequestName", "su", "org.jitney.Vm.Absent", 4) == [1]

    _, written = compared(standing(), scenario)
    assert [line.split('"')[1] for line in written if "dbus_bind" in line] == ["ALLOWED", "DENIED"]
    for part in ('name="org.jitney.Vm.Absent"', 'mask="bind"', 'pid=vm-client label="vm-client"'):
        assert part in written[-1], (part, written)
    return "\n".join(written)


def check_eavesdroppers() -> str:
    def scenario(stage: Stage) -> None:
        for who in (CLIENT, SERVER, "vm-listener", FREE):
            stage.enter(who)
        for who in (CLIENT, "vm-listener", FREE):
            found = stage.driver(who, "AddMatch", "s", "eavesdrop=true,interface='org.jitney.Vm'")
            assert (found[:1] == [DENIED]) is (who == CLIENT), (who, found)
        # The listener may hear what is not for it, the server what is for it.
        stage.call(FREE, SERVER, "Ask")
        stage.call(FREE, SERVER, "Unwelcome")
        stage.drain("vm-listener")
        assert stage.monitor(CLIENT)[:1] == [DENIED]
        assert stage.monitor("vm-listener") == []
        stage.call(FREE, SERVER, "Ask")
        stage.drain("vm-listener", syncs=False)

    _, written = compared(standing(), scenario)
    found = [line for line in written if "dbus_eavesdrop" in line]
    assert len(found) == 2, written
    assert all('"DENIED"' in line and 'mask="eavesdrop"' in line for line in found), found
    return "\n".join(written)


def check_complain() -> str:
    def scenario(stage: Stage) -> None:
        for who in (SERVER, "vm-complain"):
            stage.enter(who)
        assert stage.call("vm-complain", SERVER, "Ask") == [SERVED]
        assert stage.call(SERVER, "vm-complain", "Ask") == [SERVED]
        denied(stage.call("vm-complain", SERVER, "Unwelcome"))
        name = "org.jitney.Vm.Complain"
        assert stage.driver("vm-complain", "RequestName", "su", name, 4) == [1]
        assert stage.driver("vm-complain", "AddMatch", "s", "eavesdrop=true,member='X'") == []

    _, written = compared(standing(), scenario)
    assert verdicts(written, "Ask") == ["ALLOWED"] * 2, written
    for operation in ("dbus_bind", "dbus_eavesdrop"):
        assert [s.split('"')[1] for s in written if operation in s] == ["ALLOWED"], written
    return "\n".join(written)


def check_mute() -> str:
    """Who may not even say Hello is told so, and is nobody."""

    def scenario(stage: Stage) -> None:
        assert stage.enter("vm-mute") == ""
        ACTORS.tell("vm-mute", "close", stage.bus.name)

    _, written = compared(standing(), scenario)
    assert verdicts(written, "Hello") == ["DENIED"], written
    return "\n".join(written)


def check_stacked() -> str:
    """Two profiles on one process: what either denies is denied."""
    stack = "vm-client//&vm-stranger"

    def scenario(stage: Stage) -> None:
        for who in (stack, SERVER):
            stage.enter(who)
        assert stage.call(stack, SERVER, "Ask") == [SERVED]
        denied(stage.call(stack, SERVER, "Forbidden"))
        found = stage.driver(stack, "RequestName", "su", "org.jitney.Vm.Reserved", 4)
        assert found[0] == DENIED, found
        stage.note(label_of(stage, stage.name(stack)))

    _, written = compared(standing(), scenario)
    return "\n".join(written)


def check_started_services() -> str:
    """AssumedAppArmorLabel= says before a service is there who it will be."""
    os.makedirs(SERVICES, exist_ok=True)
    for name, label in (("Assumed", "vm-assumed"), ("Other", "vm-server")):
        with open(f"{SERVICES}/{name}.service", "w", encoding="ascii") as file:
            file.write(
                f"[D-BUS Service]\nName=org.jitney.Vm.{name}\nExec=/bin/false\n"
                f"AssumedAppArmorLabel={label}\n"
            )

    def scenario(stage: Stage) -> list[str]:
        stage.enter(CLIENT)
        for name in ("Assumed", "Other"):
            for flags in (0, 2):
                stage.send(CLIENT, destination=f"org.jitney.Vm.{name}", member="Ask", flags=flags)
        told: list[str] = []

        def all_told() -> bool:
            for message in ACTORS.tell(CLIENT, "drain", stage.bus.name, False, True):
                if message[0] == 3:
                    told.append(f"{message[4]}: {message[7]}")
            return len(told) == 4

        until(all_told, "the answers", 120)
        stage.note(sorted(told))
        return told

    told, written = compared(standing(), scenario)
    assert sum(SENDING in answer for answer in told) == 1, told
    assert [line for line in written if 'peer_label="vm-assumed"' in line], written
    return "\n".join([*told, *written])


def check_reload() -> str:
    """After `reload` of the one and an upgrade of the other all is as before, for old connections
    and new ones."""

    def scenario(stage: Stage) -> int:
        for who in (CLIENT, SERVER, "vm-listener"):
            stage.enter(who)
        assert stage.call(CLIENT, SERVER, "Ask") == [SERVED]
        before = stage.pid
        upgrades = stage.bus.name == "jitney-daemon"
        os.kill(before, signal.SIGUSR2 if upgrades else signal.SIGHUP)
        if upgrades:
            until(lambda: pid_of(stage) != before, "the upgrade", 120)
        stage.pid = pid_of(stage)
        assert stage.call(CLIENT, SERVER, "Ask") == [SERVED]
        denied(stage.call(CLIENT, SERVER, "Forbidden"))
        denied(stage.call(CLIENT, SERVER, "Unwelcome"))
        stage.enter(FREE)
        denied(stage.call(FREE, SERVER, "Unwelcome"))
        return stage.pid

    buses = [Bus(name) for name in DAEMONS]
    pid = 0
    try:
        for bus in buses:
            assert bus.began(), bus.said()
        pid, written = compared(buses, scenario)
    finally:
        buses[0].end()
        buses[1].end(pid)
    assert verdicts(written, "Forbidden") == ["DENIED"], written
    assert verdicts(written, "Unwelcome") == ["DENIED"] * 2, written
    return "\n".join(written)


def label_of(stage: Stage, name: str) -> bytes | None:
    """What the bus says that somebody is labelled."""
    asked = ("GetConnectionCredentials", "s", name)
    found = dict(ACTORS.tell(next(iter(stage.names.values())), "driver", stage.bus.name, *asked)[0])
    return bytes(found["LinuxSecurityLabel"][1]) if "LinuxSecurityLabel" in found else None


def pid_of(stage: Stage) -> int:
    asked = ("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus")
    return int(ACTORS.tell("vm-listener", "driver", stage.bus.name, *asked)[0])


def check_profiles_that_change() -> str:
    """What a profile says counts as soon as it is loaded, whatever was asked before."""
    text = (HERE / "profiles").read_text()
    other = Path("/run/vm/profiles.other")
    allow = "audit deny dbus send bus=system interface=org.jitney.Vm member=Forbidden,"
    deny = "audit deny dbus send bus=system interface=org.jitney.Vm member=Ask,"
    assert allow in text
    other.write_text(text.replace(allow, deny))

    def scenario(stage: Stage) -> None:
        for who in (CLIENT, SERVER):
            stage.enter(who)
        for _ in range(2):
            assert stage.call(CLIENT, SERVER, "Ask") == [SERVED]
            denied(stage.call(CLIENT, SERVER, "Forbidden"))
            load(other)
            denied(stage.call(CLIENT, SERVER, "Ask"))
            assert stage.call(CLIENT, SERVER, "Forbidden") == [SERVED]
            load(HERE / "profiles")

    try:
        _, written = compared(standing(), scenario)
    finally:
        load(HERE / "profiles")
    assert verdicts(written, "Forbidden") == ["DENIED"] * 2, written
    assert verdicts(written, "Ask") == ["DENIED"] * 2, written
    return "\n".join(written)


def check_modes() -> str:
    """`disabled` asks nobody, `required` is content where there is mediation."""

    def free(stage: Stage) -> None:
        for who in (CLIENT, SERVER):
            stage.enter(who)
        assert stage.call(CLIENT, SERVER, "Forbidden") == [SERVED]
        assert stage.call(CLIENT, SERVER, "Unwelcome") == [SERVED]
        assert stage.driver(CLIENT, "RequestName", "su", "org.jitney.Vm.Absent", 4) == [1]

    def kept(stage: Stage) -> None:
        for who in (CLIENT, SERVER):
            stage.enter(who)
        denied(stage.call(CLIENT, SERVER, "Forbidden"))

    with both('<apparmor mode="disabled"/>') as buses:
        _, written = compared(buses, free)
    assert written == [], written
    for mode in ("enabled", "required"):
        with both(f'<apparmor mode="{mode}"/>') as buses:
            compared(buses, kept)
    return "disabled, enabled, required"


def check_bus_under_a_profile() -> str:
    """The bus is a receiver with a profile of its own."""

    def scenario(stage: Stage) -> None:
        for who in (CLIENT, FREE):
            stage.enter(who)
        found = stage.driver(CLIENT, "ListNames")
        assert found[0] == DENIED, found
        assert len(stage.driver(CLIENT, "GetNameOwner", "s", stage.name(FREE))) == 1
        found = ACTORS.tell(FREE, "driver", stage.bus.name, "ListNames")
        assert stage.name(CLIENT) in found[0], found

    with both(under=("aa-exec", "-p", "vm-bus", "--")) as buses:
        _, written = compared(buses, scenario)
    assert verdicts(written, "ListNames") == ["DENIED"], written
    assert 'label="vm-bus"' in written[-1], written
    return "\n".join(written)


def check_our_profile() -> str:
    """Under the profile that jitney brings a bus works, and the kernel has no complaints."""
    (file,) = Path("/opt/jitney/lib").glob("python3*/site-packages/jitney/compat/data/apparmor/*")
    load(file)
    start = size()
    bus = Bus("jitney-daemon", under=("aa-exec", "-p", file.name, "--"))
    try:
        assert bus.began(), bus.said() + str(kernels(read(start), file.name))
        stage = Stage(bus)
        for who in (CLIENT, SERVER):
            stage.enter(who)
        assert stage.call(CLIENT, SERVER, "Ask") == [SERVED]
        denied(stage.call(CLIENT, SERVER, "Forbidden"))
        assert label_of(stage, stage.name(SERVER)) == b"vm-server (enforce)\0"
        stage.leave()
        written = records(bus.process.pid, start)
    finally:
        bus.end()
    assert verdicts(written, "Forbidden") == ["DENIED"], written
    complaints = kernels(read(start), file.name)
    assert not complaints, "\n".join(complaints)
    return "\n".join(written)


def check_no_errors() -> str:
    for bus in standing():
        bus.end()
    logs = {file.name: file.read_text() for file in Path("/run/vm").glob("*-jitney-daemon.log")}
    wrong = {name: said for name, said in logs.items() if "Traceback" in said}
    assert not wrong, wrong
    return f"{len(logs)} logs"


def kernels(log: str, profile: str) -> list[str]:
    """What the kernel has denied to those under that profile."""
    return [
        line for line in log.splitlines()
        if "type=AVC" in line and 'apparmor="DENIED"' in line and f'profile="{profile}"' in line
    ]  # fmt: skip


def load(file: Path) -> None:
    run(PARSER, "--replace", "--skip-cache", str(file))


def denied(answers: list[Any]) -> None:
    assert len(answers) == 1, answers
    _, error, body = answers[0]
    assert error == DENIED, answers
    assert body[0].startswith(SENDING), answers


def verdicts(written: list[str], member: str) -> list[str]:
    return [line.split('"')[1] for line in written if f'member="{member}"' in line]
