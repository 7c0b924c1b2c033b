"""Somebody on the system bus, started in whatever domain: owns a name, serves it, or calls another.

    someone.py own NAME | serve NAME | call NAME | label NAME

Invariant: what the bus answered is printed as it came, in one line; a server then answers all calls
until its standard input ends.
"""

from __future__ import annotations

import json
import select
import sys

from rawclient import RawClient

from jitney.compat import wire

ADDRESS = "unix:path=/run/dbus/system_bus_socket"
OWNED = "owner"


def main() -> None:
    what, name = sys.argv[1:]
    with RawClient(ADDRESS, timeout=300) as client:
        client.hello()
        if what == "call":
            serial = client.message(
                path=b"/vm", interface=b"org.jitney.Vm", member=b"Ask", destination=name.encode()
            )
        elif what == "label":
            serial = client.driver(b"GetConnectionCredentials", "s", name.encode())
        else:
            serial = client.driver(b"RequestName", "su", name.encode(), 4)
        reply = client.reply_to(serial)
        if reply.error_name:
            answer = [reply.error_name, *reply.body]
        elif what == "label":
            label = dict(reply.body[0]).get("LinuxSecurityLabel")
            answer = [bytes(label[1]).decode().rstrip("\0") if label else None]
        else:
            answer = reply.body
        print(json.dumps(answer, default=str), flush=True)
        while what == "serve":
            ready, _, _ = select.select([client.sock, sys.stdin], [], [])
            if sys.stdin in ready:
                break
            call = client.receive()
            if call is None:
                break
            if call.type == wire.CALL:
                client.message(
                    wire.RETURN, destination=(call.sender or "").encode(),
                    reply_serial=call.serial, signature="s", values=("served",),
                )  # fmt: skip


if __name__ == "__main__":
    main()
