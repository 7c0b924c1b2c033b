"""The bus's log: lines on standard error, datagrams to syslog or the journal, or both.

Invariant: logging never raises and never waits. A line that cannot be written now is lost (and
counted in `lost`): a logger that is being restarted must not take the bus with it.

Lines look as dbus-daemon's do: `dbus-daemon[PID]: TEXT` on standard error, facility "daemon" in
syslog, "auth" for security decisions. The tag stays "dbus-daemon", since that is what people
filter their logs by. With `json`, lines on standard error are JSON; with `journal`, what would go
to syslog goes to systemd-journald with fields, see `structured`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from typing import Any

from .structured import JOURNAL, journal_entry, json_line

TAG = "dbus-daemon"
SYSLOG = "/dev/log"

INFO = "info"
WARNING = "warning"
SECURITY = "security"
ERROR = "error"

_DAEMON, _AUTH = 3 << 3, 4 << 3
_PRIORITIES = {INFO: _DAEMON | 6, WARNING: _DAEMON | 4, SECURITY: _AUTH | 5, ERROR: _DAEMON | 2}

# A pipe that poll() calls writable takes that much at once without blocking, PIPE_BUF.
_LINE_BYTES = 4096

_LOST_CONNECTION = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE)


class Log:
    """Where the bus says what happens to it. `prefix` goes before each text."""

    def __init__(
        self,
        *,
        stderr: bool = True,
        syslog: bool = False,
        prefix: str = "",
        syslog_path: str = SYSLOG,
        stderr_fd: int = 2,
        json: bool = False,
        journal: bool = False,
    ) -> None:
        self.stderr = stderr
        self.syslog = syslog
        self.prefix = prefix
        self.json = json
        self.journal = journal
        self.lost = 0
        self._path = JOURNAL if journal and syslog_path == SYSLOG else syslog_path
        self._fd = stderr_fd
        self._sock: socket.socket | None = None

    @property
    def structured(self) -> bool:
        """Whether anything is kept of an entry's fields."""
        return (self.json and self.stderr) or (self.journal and self.syslog)

    def info(self, text: str) -> None:
        self.log(INFO, text)

    def warning(self, text: str) -> None:
        self.log(WARNING, text)

    def security(self, text: str) -> None:
        self.log(SECURITY, text)

    def error(self, text: str) -> None:
        self.log(ERROR, text)

    def log(self, severity: str, text: str, fields: dict[str, Any] | None = None) -> None:
        """Write one entry; `severity` is one of the constants above, or it counts as INFO;
        `fields`: what it is about, where that is `structured`."""
        text = self.prefix + text.rstrip("\n")
        body = text.encode("utf-8", "surrogateescape")
        pid = os.getpid()
        head = f"{TAG}[{pid}]: ".encode()
        priority = _PRIORITIES.get(severity, _PRIORITIES[INFO])
        if self.syslog and self.journal:
            self._send(journal_entry(pid, TAG, priority, text, fields or {}))
        elif self.syslog:
            stamp = time.strftime("%b %e %H:%M:%S")
            self._send(f"<{priority}>{stamp} ".encode() + head + body)
        if self.stderr and self.json:
            self._write(self._json_line(pid, severity, text, fields or {}))
        elif self.stderr:
            self._write((head + body)[: _LINE_BYTES - 1] + b"\n")

    def _json_line(self, pid: int, severity: str, text: str, fields: dict[str, Any]) -> bytes:
        line = json_line(pid, TAG, severity, text, fields)
        if len(line) > _LINE_BYTES:
            # A line that is cut is no JSON; escapes may take six times the room.
            line = json_line(pid, TAG, severity, text[: _LINE_BYTES // 8], {"cut": True})
        return line

    def close(self) -> None:
        """Let go of the syslog socket; the next line opens it anew."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _write(self, line: bytes) -> None:
        # Standard error is somebody else's, too: we may not make it non-blocking.
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if not poll.poll(0):
                self.lost += 1
                return
            os.write(self._fd, line)
        except OSError:
            self.lost += 1

    def _send(self, packet: bytes) -> None:
        """To syslog; with a new socket if the one we had led to a logger that is gone."""
        for _ in range(2):
            try:
                if self._sock is None:
                    self._sock = self._connect()
                stream = self._sock.type == socket.SOCK_STREAM
                self._sock.send(packet + b"\0" if stream else packet, socket.MSG_NOSIGNAL)
                return
            except OSError as error:
                if error.errno not in _LOST_CONNECTION:
                    break
                self.close()
        self.lost += 1

    def _connect(self) -> socket.socket:
        """A socket to syslog; a few syslogs want a stream. Raises OSError."""
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.setblocking(False)
            try:
                sock.connect(self._path)
                return sock
            except OSError as error:
                sock.close()
                if kind == socket.SOCK_STREAM or error.errno != errno.EPROTOTYPE:
                    raise
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))


def prefix_for(bus_type: str | None) -> str:
    """The prefix of a bus of this type, dbus-daemon's: which bus it is that speaks."""
    if bus_type == "system":
        return "[system] "
    if bus_type == "session":
        return f"[session uid={os.geteuid()} pid={os.getpid()}] "
    return ""
