"""What dbus-broker-launch expects around it: a socket that already listens, and a journal.

    python -m jitney.bench.activated FOLDER COMMAND ...
    python -m jitney.bench.activated --check

Listens on FOLDER/bus, passes that on as systemd would (LISTEN_FDS) and becomes COMMAND. Where no
journal listens on /run/systemd/journal/socket, one is made in a mount namespace of our own, and a
helper, whose id is written to FOLDER/helper, throws away what is sent there.

Invariant: nobody outside sees a mount of ours, and the helper ends with the process that we
become. `--check` says on standard error, with status 1, why that is not possible here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

JOURNAL = "/run/systemd/journal/socket"
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
FIRST = 3  # where inherited descriptors start

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    result = _libc.mount(source, target, kind, ctypes.c_ulong(flags), None)
    _checked(result, f"mount on {target.decode()}")


def has_journal() -> bool:
    """Whether somebody listens where the journal should."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(JOURNAL)
        except OSError:
            return False
    return True


def private_journal() -> socket.socket:
    """The journal's socket, which only this process and its children can see.

    OSError where the kernel does not let us have a mount namespace."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWNS) != 0:
        flags = CLONE_NEWUSER | CLONE_NEWNS
        _checked(_libc.unshare(flags), "unshare(CLONE_NEWUSER | CLONE_NEWNS)")
        # We stay who we are: the broker has to see its clients' true ids.
        for file, text in (
            ("uid_map", f"{uid} {uid} 1"),
            ("setgroups", "deny"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path("/proc/self", file).write_text(text)
    _mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    # Where systemd never was, all of /run is hidden in place of its folder there.
    run = "/run/systemd" if os.path.isdir("/run/systemd") else "/run"
    _mount(b"none", run.encode(), b"tmpfs", 0)
    os.makedirs(os.path.dirname(JOURNAL))
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(JOURNAL)
    return journal


def drain(journal: socket.socket, folder: Path) -> None:
    """Forks the helper, which ends with its parent."""
    parent = os.getpid()
    ready, told = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            _libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(0)
            os.write(told, b"1")
            for fd in (ready, told, FIRST):
                os.close(fd)
            while True:
                journal.recv(1 << 16)
        finally:
            os._exit(1)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    journal.close()
    (folder / "helper").write_text(str(helper))


def listen(folder: Path) -> None:
    """Descriptor FIRST becomes the listening socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "bus"))
        listener.listen(socket.SOMAXCONN)
        if listener.fileno() == FIRST:
            listener.detach()
            os.set_inheritable(FIRST, True)
        else:
            os.dup2(listener.fileno(), FIRST)


def main() -> None:
    """Becomes the command; returns only from --check."""
    if sys.argv[1:] == ["--check"]:
        if not has_journal():
            try:
                private_journal().close()
            except OSError as error:
                raise SystemExit(f"no journal, and none can be made: {error.strerror}") from None
        return
    folder, *command = sys.argv[1:]
    listen(Path(folder))
    if not has_journal():
        drain(private_journal(), Path(folder))
    os.environ.update(
        LISTEN_FDS="1",
        LISTEN_PID=str(os.getpid()),
        # The launcher is a client of its own bus.
        DBUS_SESSION_BUS_ADDRESS=f"unix:path={folder}/bus",
    )
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
