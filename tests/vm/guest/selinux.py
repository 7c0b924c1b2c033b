"""SELinux decides about messages and names, tells the audit log, and may be made permissive.

`vm.cil` has the domains. Booted with enforcing=1.

Invariant: SELinux is enforcing again after each check.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from helpers import main_pid, run, until
from mediation import FREE, OWNER, RESERVED, SERVED, SERVER, refused, serving, somebody

CONTEXT = "system_u:system_r:vm_{}_t:s0"
SENDING = "An SELinux policy prevents this sender from sending this message to this recipient"
OWNING = "due to SELinux policy"


def domain(name: str) -> tuple[str, ...]:
    return "runcon", CONTEXT.format(name)


def label(pid: int) -> str:
    with open(f"/proc/{pid}/attr/current", encoding="ascii") as file:
        return file.read().rstrip("\0\n")


def check_enforcing() -> str:
    assert run("getenforce") == "Enforcing"
    return run("sestatus")


def check_domain_of_the_bus() -> str:
    found = label(main_pid())
    assert ":system_dbusd_t:" in found, found
    return found


def check_labels_are_told() -> str:
    with serving(domain("server")):
        found = somebody(domain("client"), "label", SERVER)
        assert found == [CONTEXT.format("server")], found
        told = run(
            "busctl", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus",
            "GetConnectionSELinuxSecurityContext", "s", SERVER,
        )  # fmt: skip
        as_bytes = " ".join(str(byte) for byte in CONTEXT.format("server").encode())
        assert as_bytes in told, told
    return str(found)


def check_allowed_call() -> str:
    with serving(domain("server")):
        found = somebody(domain("client"), "call", SERVER)
        assert found == SERVED, found
    return str(found)


def check_denied_call() -> str:
    with serving(domain("server")):
        found = refused(somebody(domain("stranger"), "call", SERVER), SENDING)
    for part in ('interface="org.jitney.Vm"', 'member="Ask"', f'destination="{SERVER}"'):
        assert part in found, (part, found)
    return found


def check_allowed_name() -> str:
    found = somebody(domain("server"), "own", RESERVED)
    assert found == OWNER, found
    found = somebody(domain("stranger"), "own", FREE)
    assert found == OWNER, found
    return str(found)


def check_denied_name() -> str:
    found = refused(somebody(domain("stranger"), "own", RESERVED), OWNING)
    assert RESERVED in found, found
    return found


def check_audit_of_call() -> str:
    found = audited("denied  { send_msg }", "vm_stranger_t", "vm_server_t")
    for part in ("tclass=dbus", "member=Ask", "interface=org.jitney.Vm", f"dest={SERVER}"):
        assert part in found, (part, found)
    return found


def check_audit_of_name() -> str:
    found = audited("denied  { acquire_svc }", "vm_stranger_t", "vm_name_t")
    for part in ("tclass=dbus", f"service={RESERVED}"):
        assert part in found, (part, found)
    return found


def check_permissive() -> str:
    """Nothing is refused while the mode is permissive, and it is again afterwards."""
    with serving(domain("server")):
        with permissive():
            found = somebody(domain("stranger"), "call", SERVER)
            assert found == SERVED, found
            found = somebody(domain("stranger"), "own", RESERVED)
            assert found == OWNER, found
        refused(somebody(domain("stranger"), "call", SERVER), SENDING)
    return refused(somebody(domain("stranger"), "own", RESERVED), OWNING)


def audited(*parts: str) -> str:
    """The latest record of the bus, as it is now, with all of these."""
    found: list[str] = []
    parts = (f" pid={main_pid()} ", *parts)

    def there() -> bool:
        said = run("ausearch", "--input-logs", "--message", "USER_AVC", status=None)
        found[:] = [line for line in said.splitlines() if all(part in line for part in parts)]
        return bool(found)

    until(there, f"a record with {parts}", 60)
    return found[-1]


@contextlib.contextmanager
def permissive() -> Iterator[None]:
    run("setenforce", "0")
    try:
        yield
    finally:
        run("setenforce", "1")
