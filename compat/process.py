"""Being a daemon: descriptors, the fork, the pid file, limits, the change of user.

Invariant: what a step cannot do, it says in the words dbus-daemon has for it (DBusError) or, if
the bus can live without it, by `warn(text)`; nothing here writes to a stream by itself but the
pid and the address where they were asked for.

The order of the steps is the business of jitney.compat.daemon.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
from collections.abc import Callable

from . import errors, ways
from .errors import DBusError

ENOUGH_FDS = 65536
"""Descriptors that suffice even if several users try to use them up together."""

Warn = Callable[[str], None]
Limit = tuple[int, int]
"""Soft and hard RLIMIT_NOFILE."""

_HANDLED = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
"""Signals that the daemon handles."""

_ERRNO_NAMES = {
    errno.EPROTONOSUPPORT: errors.NOT_SUPPORTED,
    errno.EAFNOSUPPORT: errors.NOT_SUPPORTED,
    errno.ENFILE: errors.LIMITS_EXCEEDED,
    errno.EMFILE: errors.LIMITS_EXCEEDED,
    errno.EACCES: errors.ACCESS_DENIED,
    errno.EPERM: errors.ACCESS_DENIED,
    errno.ENOBUFS: errors.NO_MEMORY,
    errno.ENOMEM: errors.NO_MEMORY,
    errno.EADDRINUSE: errors.ADDRESS_IN_USE,
    errno.EEXIST: errors.FILE_EXISTS,
    errno.ENOENT: errors.FILE_NOT_FOUND,
}


def from_errno(error: OSError, text: str) -> DBusError:
    """`text: strerror` under the error name libdbus has for this errno."""
    number = error.errno or 0
    return DBusError(_ERRNO_NAMES.get(number, errors.FAILED), f"{text}: {os.strerror(number)}")


# Descriptors


def ensure_standard_fds(*, null_in: bool, null_out: bool = False, null_err: bool = False) -> None:
    """Open what is closed of 0, 1 and 2 on /dev/null; replace those asked for by it anyway.

    Call it before anything else opens a descriptor: a socket that became number 0 would be
    closed when the daemon forks. Raises OSError.
    """
    null = -1
    for fd, forced in enumerate((null_in, null_out, null_err)):
        if null < fd:
            # The lowest free number is taken: `fd` itself if it is closed.
            null = os.open("/dev/null", os.O_RDWR)
            if null <= 2:
                os.set_inheritable(null, True)
        if null != fd and forced:
            os.dup2(null, fd, inheritable=True)
    if null > 2:
        os.close(null)


def close_on_exec() -> None:
    """Keep every descriptor from 3 on from the programs we start, whoever opened it."""
    for fd in _open_fds():
        try:
            os.set_inheritable(fd, False)
        except OSError:
            pass  # the one that listed the directory, closed by now


def _open_fds() -> list[int]:
    fds = ways.open_fds()
    if fds is None:
        return list(range(3, min(os.sysconf("SC_OPEN_MAX"), ENOUGH_FDS)))
    return [fd for fd in fds if fd > 2]


def print_line(fd: int, text: str) -> None:
    """Write a line to a descriptor that was given on the command line. Raises DBusError."""
    line = os.fsencode(text + "\n")
    try:
        written = os.write(fd, line)
    except OSError as error:
        raise DBusError(errors.FAILED, f"Writing to pipe: {error.strerror}") from error
    if written != len(line):
        raise DBusError(errors.FAILED, "Writing to pipe: did not write all bytes")


def close_printed(fd: int) -> None:
    """Be done with such a descriptor; whoever reads there gets an end of file."""
    if fd > 2:
        try:
            os.close(fd)
        except OSError:
            pass  # the line went out, which is what mattered


# The pid file


def check_pidfile(path: str) -> None:
    """Raise DBusError if the file exists: another bus may run."""
    try:
        os.stat(path)
    except OSError:
        return
    raise DBusError(
        errors.FAILED,
        f'The pid file "{path}" exists, if the message bus is not running, remove this file',
    )


def write_pidfile(path: str, pid: int) -> None:
    """Create the file, which must not be there. Raises DBusError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise from_errno(error, f'Failed to open "{path}"') from error
    try:
        with open(fd, "wb") as file:
            file.write(b"%d\n" % pid)
    except OSError as error:
        raise from_errno(error, f'Failed to write to "{path}"') from error


def remove_pidfile(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # after a change of user it may not be ours to remove


# The fork


class Fork:
    """The child's end of the fork: the parent waits until `ready()` or until we die."""

    def __init__(self, fd: int, keep_errors: bool) -> None:
        self._fd = fd
        self._keep_errors = keep_errors

    def ready(self) -> None:
        """Let go of the terminal and let the parent print our pid and exit."""
        ensure_standard_fds(null_in=True, null_out=True, null_err=not self._keep_errors)
        try:
            os.write(self._fd, b"\0")
        except OSError:
            pass  # the parent was killed; that need not be the end of us
        os.close(self._fd)


def daemonise(*, pidfile: str | None, print_pid: int | None, keep_umask: bool) -> Fork:
    """Fork and return in the child, which is in a session of its own, in /, with umask 022.

    The parent writes the pid file at once, and when the child says it is ready, writes the pid
    to descriptor `print_pid` and exits with 0. It exits with the child's status if that ends
    before. (dbus-daemon's parent does not wait.) Standard output and error stay the caller's
    until then, so that a failure can still be told; standard error stays for good if
    DBUS_DEBUG_OUTPUT is set. Raises DBusError, in the parent.
    """
    try:
        os.chdir("/")
    except OSError:
        raise DBusError(errors.FAILED, "Could not chdir() to root directory") from None
    readable, writable = os.pipe()
    # Python's fork() forgets signals that reach the child too soon, such as our own _kill().
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        child = os.fork()
    except OSError as error:
        raise from_errno(error, "Failed to fork daemon") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if child == 0:
        os.close(readable)
        if not keep_umask:
            os.umask(0o022)
        os.setsid()
        return Fork(writable, bool(os.environ.get("DBUS_DEBUG_OUTPUT")))
    os.close(writable)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)  # the caller's handlers are for the child
    written: str | None = None
    try:
        if pidfile is not None:
            write_pidfile(pidfile, child)
            written = pidfile
        if not os.read(readable, 1):
            _exit_like(child)
        if print_pid is not None:
            print_line(print_pid, str(child))
    except DBusError:
        _kill(child)
        if written is not None:
            remove_pidfile(written)
        raise
    os._exit(0)


def _exit_like(child: int) -> None:
    """Exit with the status of a child that has said why it failed; DBusError if it could not."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        raise DBusError(errors.FAILED, f"The daemon was killed by {name} at its start")
    os._exit(code)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:
        pass  # it is gone already


# Limits


def raise_fd_limit(warn: Warn) -> Limit | None:
    """Allow ourselves many descriptors. Returns what the limit was, for the services we start."""
    import resource

    try:
        old = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError as error:
        warn(str(from_errno(error, "Failed to get fd limit")))
        return None
    hard = old[1]
    if os.getuid() == 0 and hard != resource.RLIM_INFINITY:
        hard = max(hard, ENOUGH_FDS)
    for limit in (hard, old[1]):
        if (limit, limit) == old:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            break
        except (OSError, ValueError) as error:
            # ValueError is what Python makes of EPERM. The next best is all we are allowed.
            number = error.errno if isinstance(error, OSError) else errno.EPERM
            warn(str(from_errno(OSError(number, ""), f"Failed to set fd limit to {limit}")))
    return old


# The user


_NUMBER = re.compile(r"[ \t\n\v\f\r]*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z")
"""What strtoul(3) takes as a whole, with the base that the digits say."""


def find_user(name: str) -> tuple[int, int] | None:
    """Uid and primary gid of a user given by name or by number; None if there is none."""
    import pwd

    number = _NUMBER.match(name)
    try:
        entry = pwd.getpwuid(_number(number[1])) if number else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):
        return None
    return entry.pw_uid, entry.pw_gid


def _number(digits: str) -> int:
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16)
    return int(digits, 8 if digits[0] == "0" else 10)


def change_user(name: str) -> None:
    """Become this user for good: no supplementary groups, and of all that root may do only
    writing to the kernel's audit log. Raises DBusError.

    Ids stay as they are if we are not root: a bus that was started as somebody stays that.
    """
    from . import capabilities

    user = find_user(name)
    if user is None:
        raise DBusError(errors.FAILED, f"User '{name}' does not appear to exist?")
    # A service manager may have started us as this user, with that one capability.
    capabilities.clear_ambient()
    if os.geteuid() != 0:
        return
    uid, gid = user
    kept = _keep_capability()
    steps: tuple[tuple[Callable[[], None], str], ...] = (
        (lambda: os.setgroups([]), "Failed to drop supplementary groups"),
        (lambda: os.setgid(gid), f"Failed to set GID to {gid}"),
        (lambda: os.setuid(uid), f"Failed to set UID to {uid}"),
    )
    for step, text in steps:
        try:
            step()
        except OSError as error:
            raise from_errno(error, text) from error
    _drop_capabilities(kept)


def _keep_capability() -> int:
    """Prepare for keeping one capability as somebody else; what will be left then, maybe none."""
    from . import capabilities

    now = capabilities.permitted()
    kept = now & capabilities.AUDIT_WRITE
    try:
        if kept:
            # The rest goes first: should a later step fail, there is not much to be left with.
            capabilities.limit_to(now & (kept | capabilities.SETUID | capabilities.SETGID))
            capabilities.keep_across_setuid(True)
    except OSError:
        return 0
    return kept


def _drop_capabilities(kept: int) -> None:
    from . import capabilities

    try:
        capabilities.limit_to(kept)
    except OSError as error:
        if capabilities.permitted() & ~kept:
            raise from_errno(error, "Failed to drop capabilities") from error
    try:
        if kept:
            capabilities.keep_across_setuid(False)
    except OSError as error:
        raise from_errno(error, "Failed to unset keep-capabilities") from error


# The service manager


def notify(state: str) -> None:
    """Tell systemd (or who understands its protocol) about us, sd_notify(3); never fails."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    target = "\0" + path[1:] if path[0] == "@" else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), target)
    except OSError:
        pass  # a manager that does not listen must not hurt the bus
