"""Child: the configuration is read in a process of its own, which hands back plain data.

Invariant: the bus's own process loads neither XML nor pydantic (half of what it would weigh), and
whatever becomes of the child, its parent gets a `Plain` or a ConfigError and has reaped it. To
whoever waits it is one blocking call. The child shares the bus's descriptors and runs
copies of its objects, hence: no handler of the bus runs in it, no destructor and nothing `atexit`,
and it never returns. Where there can be no child, the reading is done here: heavier, same answer.

The child ignores the signals that the bus handles: a Ctrl-C or a service manager means all of the
group, and the bus, which heeds them, reads its configuration to the end as well.
"""

from __future__ import annotations

import gc
import marshal
import os
import signal
import stat
from typing import Any, NoReturn

from .. import ways
from .errors import ConfigError
from .plain import Plain, pack, unpack

_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

_READ, _REFUSED, _BROKEN = range(3)


def read(path: str) -> Plain:
    """The configuration in the file `path` and all that it includes. Raises ConfigError."""
    return Reading(path).result()


class Reading:
    """A configuration that is being read, while its parent may do something else."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid = 0
        self._pipe = -1
        self._start()

    def fileno(self) -> int:
        """Readable as soon as `result()` has not much left to wait for; -1 if it is all to be done
        then."""
        return self._pipe if self._pid else -1

    def result(self) -> Plain:
        """Waits for the end and says what came of it; to be called once. Raises ConfigError."""
        if not self._pid:
            return _understood(_answer(self.path))
        answer = None
        try:
            with open(self._pipe, "rb") as pipe:
                # One value that is there whole or not at all, however the child ended.
                answer = marshal.load(pipe)
        except (EOFError, ValueError, TypeError, OSError):
            pass
        finally:
            status = self._reap(kill=answer is None)
        if answer is None:
            raise _failed(self.path, _end(status))
        return _understood(answer)

    def forget(self) -> None:
        """Instead of `result()`: nobody wants to know any more."""
        if self._pid:
            os.close(self._pipe)
            self._reap(kill=True)

    def _start(self) -> None:
        try:
            self._pipe, writable = os.pipe()
        except OSError:
            return
        collecting = gc.isenabled()
        gc.disable()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._pid = os.fork()
            if not self._pid:
                _become_reader(self.path, self._pipe, writable, mask)
        except OSError:
            os.close(self._pipe)
        finally:
            os.close(writable)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if collecting:
                gc.enable()

    def _reap(self, kill: bool) -> int | None:
        """The status of exactly this child; None if it went elsewhere (SIGCHLD is ignored)."""
        try:
            if kill:
                # It has failed, or the bus was interrupted: in no case is it waited for any longer.
                os.kill(self._pid, signal.SIGKILL)
            return os.waitpid(self._pid, 0)[1]
        except OSError:
            return None


def _become_reader(path: str, bus_end: int, writable: int, mask: set[Any]) -> NoReturn:
    """In the child, with all signals blocked and without a collector: reads, and ends."""
    status = 1
    try:
        # The loop's end of the wake-up socket is the bus's, too.
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # Else we would wait for ourselves to read the answer, once the bus is gone.
        os.close(bus_end)
        # The bus may go on meanwhile: who leaves it is not to be kept by us.
        _let_go_of_sockets()
        # Looking for plugins takes pydantic longer than all models together.
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
        answer = marshal.dumps(_answer(path))
        with open(writable, "wb") as pipe:
            pipe.write(answer)
        status = 0
    finally:
        # Whatever it was: from here on this would be a second bus.
        os._exit(status)


def _let_go_of_sockets() -> None:
    """Closes them, so that they end when the bus says so. The configuration may be in a file that
    is open, as /proc/self/fd/N."""
    for fd in ways.open_fds() or ():
        try:
            if fd > 2 and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.close(fd)
        except OSError:
            pass


def _answer(path: str) -> tuple[Any, ...]:
    """What came of reading, as marshal knows it."""
    try:
        from .loader import load

        return (_READ, pack(load(path)))
    except ConfigError as error:
        return (_REFUSED, error.file, error.line, error.text, error.missing)
    except Exception as error:
        return (_BROKEN, path, f"{type(error).__name__}: {error}")


def _understood(answer: tuple[Any, ...]) -> Plain:
    kind, *rest = answer
    if kind == _READ:
        return unpack(*rest)
    if kind == _REFUSED:
        file, line, text, missing = rest
        raise ConfigError(file, line, text, missing=missing)
    raise _failed(*rest)


def _failed(path: str, reason: str) -> ConfigError:
    return ConfigError(path, 0, f'Failed to read configuration "{path}": {reason}')


def _end(status: int | None) -> str:
    if status is None:
        return "the process that reads it ended for a reason unknown"
    if os.WIFSIGNALED(status):
        return f"the process that reads it was killed by signal {os.WTERMSIG(status)}"
    code = os.waitstatus_to_exitcode(status)
    return f"the process that reads it ended with status {code}"
