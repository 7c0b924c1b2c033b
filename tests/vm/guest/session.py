"""Runs in the user's session, which began with a login on a serial line: does what the checks ask.

Invariant: it asks nobody but the environment of that login where anything is, buses included.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess


def main() -> None:
    os.environ.update(LC_ALL="C.UTF-8", SYSTEMD_PAGER="", SYSTEMD_COLORS="0")
    os.environ["PATH"] += ":/opt/jitney/bin"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ["XDG_RUNTIME_DIR"] + "/vm")
    listener.listen()
    while True:
        link, _ = listener.accept()
        with link, link.makefile("rwb") as file:
            words = json.load(file)
            try:
                done = subprocess.run(
                    words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, timeout=500,
                )  # fmt: skip
                answer = done.returncode, done.stdout.decode(errors="replace").strip()
            except (OSError, subprocess.TimeoutExpired) as error:
                answer = 255, str(error)
            file.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
