"""One connection of the soak: a socket that never blocks, and messages as they come.

Invariant: what is to be sent goes out in its order, each descriptor with the first byte of its
message, and is ours to close until then. `Closed` when the bus has ended the connection.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from .. import wire

PATIENCE = 20.0
_FDS = socket.CMSG_SPACE(64 * 4)


class Closed(Exception):
    """The bus has ended a connection that was well."""


@dataclass
class Message:
    """What the soak wants to know of one; no field is None."""

    type: int
    flags: int
    serial: int
    reply_serial: int = 0
    member: str = ""
    error: str = ""
    sender: str = ""
    destination: str = ""
    body: bytes = b""
    fds: list[int] = field(default_factory=list)


class Client:
    """Connected, authenticated, and with a unique name."""

    def __init__(self, path: str, uid: int | None = None) -> None:
        self.serial = 1
        self.out: deque[tuple[memoryview, list[int]]] = deque()
        self.slow = False
        self._unread = b""
        self._fds: list[int] = []
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            # Who we are is noted at connect().
            before = os.geteuid()
            os.seteuid(before if uid is None else uid)
            try:
                self.sock.connect(path)
                lines = wire.auth_lines(with_fds=True, uid=os.geteuid())
            finally:
                os.seteuid(before)
            self.sock.sendall(lines + wire.hello())
            self.name = self._greeted()
        except OSError as error:
            self.sock.close()
            raise Closed(f"before it had a name: {error}") from error
        self.sock.setblocking(False)

    def _greeted(self) -> str:
        lines = 0
        data = b""
        while lines < 2:
            data += self._more()
            lines = data.count(b"\r\n")
        data = data.split(b"\r\n", 2)[2]
        while True:
            name, rest = wire.parse_string_reply(data, 1)
            if name is not None:
                self._unread = rest
                return name.decode()
            data += self._more()

    def _more(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("end of stream")
        return data

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        """Queues a message; takes the descriptors over."""
        self.out.append((memoryview(data), fds or []))

    def flush(self) -> None:
        """Sends what the socket takes."""
        while self.out:
            data, fds = self.out[0]
            extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self.sock.sendmsg([data], extra)
            except BlockingIOError:
                return
            except OSError as error:
                raise Closed(str(error)) from error
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self.out[0] = (data[sent:], [])
                return
            self.out.popleft()

    def receive(self, most: int = 1 << 20) -> list[Message]:
        """What has come, whole messages only; about `most` bytes."""
        pieces = [self._unread]
        size = 0
        while size < most:
            try:
                data, extra, _, _ = self.sock.recvmsg(1 << 18, _FDS)
            except BlockingIOError:
                break
            except OSError as error:
                raise Closed(str(error)) from error
            for _, _, passed in extra:
                numbers = array.array("i")
                numbers.frombytes(passed)
                self._fds += numbers
            if not data:
                raise Closed("end of stream")
            pieces.append(data)
            size += len(data)
            if len(data) < 1 << 16:
                break
        if size == 0:
            return []
        data = b"".join(pieces)
        found = []
        at = 0
        while len(data) - at >= 16:
            body, _, fields = struct.unpack_from("<III", data, at + 4)
            end = at + 16 + (fields + 7 & ~7) + body
            if end > len(data):
                break
            found.append(self._parsed(data[at:end], fields, body))
            at = end
        self._unread = data[at:]
        return found

    def _parsed(self, data: bytes, fields: int, size: int) -> Message:
        if data[:1] != b"l":
            raise Closed("a message of a byte order that nobody uses here")
        message = Message(data[1], data[2], int.from_bytes(data[8:12], "little"))
        at, end = 16, 16 + fields
        while at < end:
            code, kind = data[at], data[at + 2 : at + 3]
            at += 4
            if kind == b"g":
                at += data[at] + 2
            elif kind == b"u":
                number = int.from_bytes(data[at : at + 4], "little")
                at += 4
                if code == 5:
                    message.reply_serial = number
                elif code == 9:
                    message.fds, self._fds = self._fds[:number], self._fds[number:]
                    if len(message.fds) != number:
                        raise Closed("descriptors are missing")
            else:
                length = int.from_bytes(data[at : at + 4], "little")
                text = data[at + 4 : at + 4 + length].decode()
                at += length + 5
                if code in _TEXTS:
                    setattr(message, _TEXTS[code], text)
            at = at + 7 & ~7
        message.body = data[len(data) - size :]
        return message

    def close(self) -> None:
        self.sock.close()
        for _, fds in self.out:
            self._fds += fds
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.out.clear()


_TEXTS = {3: "member", 4: "error", 6: "destination", 7: "sender"}


class Patient(Client):
    """The same for one question after the other, when all else stands still."""

    def ask(self, data: bytes) -> Message:
        """The answer to a call with `next_serial()`'s last; of others nothing is kept."""
        self.send(data)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.flush()
            for message in self.receive():
                for fd in message.fds:
                    os.close(fd)
                if message.reply_serial == self.serial:
                    return message
            time.sleep(0.001)
        raise Closed("no answer")
