"""`jitney upgrade`: has a running bus go on in a new process, with the code that is installed now.

Invariant: it asks, and says what the bus says; status 0 if the bus is another process now, 1 if it
goes on as it was, 2 if it cannot be asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ..client import Client, NoBus, standard_address
from ..errors import ACCESS_DENIED, UNKNOWN_INTERFACE, UNKNOWN_METHOD, DBusError
from ..look import asking

INTERFACE = "org.jitney.Upgrade1"
PATIENCE = 120.0
"""Seconds; a new process may take a while to start on a busy machine."""
NOT_UPGRADED, UNUSABLE = 1, 2


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    parser = asking.parser(
        "upgrade",
        "Hands a running bus over to a new process, with the code and the configuration that are "
        "there now. No connection is lost; if the new process is no good, the old one goes on.",
    )
    parser.add_argument(
        "--exec",
        metavar="PROGRAM",
        default="",
        help="the jitney-daemon to run from now on; otherwise what was started the last time",
    )
    parser.add_argument("--json", action="store_true", help="what was taken over, as JSON")
    options = parser.parse_args(words)
    try:
        with Client(options.address or standard_address(options.bus), PATIENCE) as client:
            (text,) = client.call("Upgrade", "s", options.exec, interface=INTERFACE.encode())
    except NoBus as reason:
        return _complain(str(reason), UNUSABLE)
    except (OSError, ValueError) as error:
        return _complain(f"the bus does not answer as it should: {error}", UNUSABLE)
    except DBusError as error:
        return _complain(*_explained(error))
    print(text if options.json else _told(text))
    return 0


def _complain(text: str, status: int) -> int:
    print(f"jitney upgrade: {text}", file=sys.stderr)
    return status


def _explained(error: DBusError) -> tuple[str, int]:
    if error.name in (UNKNOWN_INTERFACE, UNKNOWN_METHOD):
        return "this bus cannot be upgraded: it is no jitney, or an old one", UNUSABLE
    text = error.text
    if error.name == ACCESS_DENIED and text.startswith("Rejected"):
        text += (
            "\nThe bus's policy does not let you ask. This in its configuration would:\n"
            '  <allow send_destination="org.freedesktop.DBus"'
            f' send_interface="{INTERFACE}"/>\n'
            "The signal SIGUSR2 to the bus does the same and needs no policy."
        )
    return text, UNUSABLE if error.name == ACCESS_DENIED else NOT_UPGRADED


def _told(text: str) -> str:
    found = json.loads(text)
    parts = [f"{found['connections']} connections", f"{found['names']} names"]
    parts += [
        f"{found[key]} {what}"
        for key, what in (
            ("replies", "awaited replies"),
            ("activations", "services that are starting"),
            ("queued_bytes", "bytes that wait"),
        )
        if found[key]
    ]
    return (
        f"The bus is process {found['pid']} now. Taken over: {', '.join(parts)}. "
        f"It stood still for {found['pause_ms']:.1f} ms."
    )
