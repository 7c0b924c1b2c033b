"""Child: buses in a process of their own, and the line that leads there.

Invariant: a request is answered before the next one is read; the child ends when the line is cut,
so it never outlives whoever started it. One child holds as many buses as are asked for, each with
everything of its own: a bus for each test costs a few milliseconds.

A message on the line is its length in four bytes and what marshal makes of a tuple.
"""

from __future__ import annotations

import marshal
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from jitney.compat.errors import DBusError

TIMEOUT = 30.0
_MAIN = "import sys; from jitney.testing.child import main; main(int(sys.argv[1]))"


class ChildError(Exception):
    """The child's process is gone, or could not do what it was asked for."""


class Child:
    """The side that asks. Calls block, but not for long."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.sock.settimeout(TIMEOUT)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        except BaseException:
            self.sock.close()
            raise
        finally:
            theirs.close()

    def ask(self, verb: str, *given: Any) -> Any:
        """What the other side answers. Raises what it raised, as far as that means something."""
        with self.lock:
            try:
                _send(self.sock, (verb, *given))
                answer = _receive(self.sock)
            except OSError as error:
                raise ChildError(f"the bus's process does not answer: {error}") from None
        if answer is None:
            raise ChildError("the bus's process is gone")
        kind, *rest = answer
        if kind == "ok":
            return rest[0]
        if kind == "DBusError":
            raise DBusError(*rest)
        raise (LookupError if kind == "LookupError" else ChildError)(*rest)

    def close(self) -> None:
        self.sock.close()
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Hosted:
    """One bus in a child, as `Host` is one in this process."""

    def __init__(self, child: Child, about: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.child = child
        self.number, self.address = child.ask("open", about, dict(environ))

    def ask(self, verb: str, *given: Any) -> Any:
        return self.child.ask("bus", self.number, verb, *given)

    def close(self) -> None:
        try:
            self.child.ask("close", self.number)
        except ChildError:
            # And so is the bus, but for its directory, if the process did not get to take it away.
            path = self.address.partition("unix:path=")[2].partition(",")[0]
            folder = os.path.dirname(path)
            if os.path.basename(folder).startswith("jitney-testing-"):
                shutil.rmtree(folder, ignore_errors=True)


def _send(sock: socket.socket, value: tuple[Any, ...]) -> None:
    data = marshal.dumps(value)
    sock.sendall(len(data).to_bytes(4, "little") + data)


def _receive(sock: socket.socket) -> tuple[Any, ...] | None:
    """The next message; None at the end."""
    head = _exactly(sock, 4)
    if head is None:
        return None
    data = _exactly(sock, int.from_bytes(head, "little"))
    value: tuple[Any, ...] | None = None if data is None else marshal.loads(data)
    return value


def _exactly(sock: socket.socket, n: int) -> bytes | None:
    data = bytearray()
    while len(data) < n:
        some = sock.recv(n - len(data))
        if not some:
            return None
        data += some
    return bytes(data)


# The other side


class _Server:
    def __init__(self, loop: Any, sock: socket.socket) -> None:
        self.loop = loop
        self.sock = sock
        self.buses: dict[int, Any] = {}
        self.n_buses = 0
        loop.add_reader(sock.fileno(), self.readable)

    def readable(self) -> None:
        # Whoever asks waits for the answer, so nothing comes in pieces for long.
        try:
            request = _receive(self.sock)
            if request is None:
                self.loop.stop()
                return
            _send(self.sock, self.answer(*request))
        except OSError:
            self.loop.stop()

    def answer(self, verb: str, *given: Any) -> tuple[Any, ...]:
        try:
            return ("ok", getattr(self, "on_" + verb)(*given))
        except DBusError as error:
            return ("DBusError", error.name, error.text)
        except LookupError as error:
            return ("LookupError", str(error))
        except Exception as error:
            return ("ChildError", f"{type(error).__name__}: {error}")

    def on_open(self, about: dict[str, Any], environ: dict[str, str]) -> tuple[int, str]:
        from .host import Host

        host = Host(self.loop, about, environ)
        self.n_buses += 1
        self.buses[self.n_buses] = host
        return self.n_buses, host.address

    def on_bus(self, number: int, verb: str, *given: Any) -> Any:
        return self.buses[number].ask(verb, *given)

    def on_close(self, number: int) -> None:
        self.buses.pop(number).close()

    def close(self) -> None:
        for host in self.buses.values():
            host.close()


def main(fd: int) -> None:
    """Serves whoever holds the other end of this socket."""
    import asyncio
    import signal

    # A Ctrl-C is the tests' to handle; it ends them, and that ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(fd, False)
    loop = asyncio.new_event_loop()
    server = _Server(loop, socket.socket(fileno=fd))
    try:
        loop.run_forever()
    finally:
        server.close()
