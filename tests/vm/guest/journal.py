"""What a real journal has of what happened on the buses.

Invariant: looks only at what earlier rounds have caused; it causes nothing itself.
"""

from __future__ import annotations

from helpers import BUS, UID, entries


def check_fields_of_refusals() -> str:
    if BUS != "jitney-daemon":
        found = [e for e in entries("-t", "dbus-daemon") if "SetExitCode" in str(e["MESSAGE"])]
        assert found, "no line about the refused call"
        return str(found[-1]["MESSAGE"])
    found = entries("JITNEY_EVENT=denied", f"JITNEY_UID={UID}", "JITNEY_MEMBER=SetExitCode")
    assert found, "no entry about the refused call"
    entry = found[-1]
    for name, value in (
        ("JITNEY_INTERFACE", "org.freedesktop.systemd1.Manager"),
        ("JITNEY_DESTINATION", "org.freedesktop.systemd1"),
        ("JITNEY_TYPE", "method_call"),
        ("_SYSTEMD_UNIT", "jitney.service"),
        ("_TRANSPORT", "journal"),
        ("SYSLOG_PID", entry["_PID"]),
    ):
        assert entry.get(name) == value, (name, entry)
    assert "Rejected send message" in str(entry["MESSAGE"]), entry
    assert ".conf" in str(entry["JITNEY_RULE"]), entry
    return str({name: value for name, value in entry.items() if not name.startswith("_")})


def check_fields_of_activation() -> str:
    if BUS != "jitney-daemon":
        return "has none"
    found = entries("JITNEY_EVENT=activated", "JITNEY_NAME=org.freedesktop.hostname1")
    assert found, "no entry about hostnamed"
    return str(found[-1]["MESSAGE"])


def check_nothing_went_wrong() -> str:
    """Nothing of the buses at the level of errors, and nothing of Python's."""
    found = [
        f"{entry.get('SYSLOG_IDENTIFIER')}: {entry.get('MESSAGE')}"
        for unit in ("_SYSTEMD_UNIT=jitney.service", "_SYSTEMD_USER_UNIT=jitney.service")
        for entry in entries(unit)
        if int(str(entry.get("PRIORITY", 6))) <= 3 or "Traceback" in str(entry.get("MESSAGE"))
    ]
    assert not found, found
    return "none"
