"""The keyring of DBUS_COOKIE_SHA1: secrets in a file that only its owner can read.

Invariant: this module touches nothing but `~/.dbus-keyrings` of the user the bus runs as, never
through a symbolic link, and only while that directory belongs to this user alone
(CVE-2019-12749: a client names the user it wants to be, and the other user's home directory is
the other user's trap). It never waits: a lock that stays taken costs the client its attempt, not
the bus its time.

File format and times: D-Bus Specification, "DBUS_COOKIE_SHA1": a line for each key, `id time
hex`, ids decimal, time in seconds since 1970. A key serves challenges for five minutes and is
dropped after seven, which leaves a client two to answer.
"""

from __future__ import annotations

import os
import pwd
import stat
import time

from . import ways
from .auth import COOKIE_CONTEXT, KeyringError

NEW_KEY_SECONDS = 5 * 60
EXPIRE_SECONDS = NEW_KEY_SECONDS + 2 * 60
FUTURE_SECONDS = 5 * 60
"""How far ahead of our clock a key's time may be (the home directory may be on a server)."""

MAX_KEYS = 256
KEY_BYTES = 24

STALE_LOCK_SECONDS = 8
"""A lock file of this age belongs to somebody who died: writers hold it for milliseconds."""

_LOCK_TRIES = 10
_LOCK_PAUSE = 0.002
_MAX_FILE = 1024 * 1024
_MAX_ID = 0x7FFFFFFF
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Keyring:
    """The keys of one context, read anew for each conversation that asks for a cookie.

    `home` is for tests; by default it is the home directory the user database gives for our
    effective uid ($HOME might be somebody else's after a change of user).
    """

    def __init__(self, home: str | None = None, context: str = COOKIE_CONTEXT.decode()) -> None:
        if ways.is_setuid():
            raise KeyringError("Unable to create DBus keyring when setuid")
        if home is None:
            try:
                home = pwd.getpwuid(os.geteuid()).pw_dir
            except KeyError:
                raise KeyringError("the user of the bus has no home directory") from None
        self._directory = os.path.join(home, ".dbus-keyrings")
        self._name = context
        self._keys: dict[int, tuple[int, bytes]] = {}  # id -> creation time, key

    def owns(self, user: bytes) -> bool:
        """True if `user` is our own uid in decimal, or a name of it."""
        if user.isdigit():
            return user == b"%d" % os.geteuid()
        try:
            return pwd.getpwnam(os.fsdecode(user)).pw_uid == os.geteuid()
        except (KeyError, ValueError):
            return False

    def best_key(self) -> int:
        """The id of a key that is young enough to be used, made now if there is none.

        Raises KeyringError if the keyring cannot be read or written.
        """
        try:
            directory = self._open_directory()
        except OSError as error:
            raise KeyringError(f"{self._directory}: {error.strerror}") from error
        try:
            self._keys = self._load(directory, MAX_KEYS)
            key = self._recent()
            if key < 0:
                self._add(directory)
                key = self._recent()
        except OSError as error:
            raise KeyringError(f"{self._directory}/{self._name}: {error.strerror}") from error
        finally:
            os.close(directory)
        if key < 0:
            raise KeyringError(
                "No recent-enough key found in keyring, and unable to create a new key"
            )
        return key

    def secret(self, key: int) -> bytes:
        """The key of this id in lower-case hex; b"" if there is none."""
        found = self._keys.get(key)
        return b"" if found is None else found[1].hex().encode()

    def _recent(self) -> int:
        oldest = time.time() - NEW_KEY_SECONDS
        for key, (created, _) in self._keys.items():
            if created > oldest:
                return key
        return -1

    def _open_directory(self) -> int:
        """A descriptor of the private directory; all else is done relative to it."""
        try:
            os.mkdir(self._directory, 0o700)
        except FileExistsError:
            pass
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
        about = os.fstat(directory)
        if about.st_uid != os.geteuid():
            text = (
                f"{self._directory} directory is owned by user {about.st_uid}, not {os.geteuid()}"
            )
        elif about.st_mode & 0o077:
            text = f"{self._directory} directory is not private to the user"
        else:
            return directory
        os.close(directory)
        raise KeyringError(text)

    def _load(self, directory: int, limit: int) -> dict[int, tuple[int, bytes]]:
        """Keys of the file that are neither expired nor nonsense, `limit` at most."""
        try:
            fd = os.open(self._name, os.O_RDONLY | _OPEN, dir_fd=directory)
        except FileNotFoundError:
            return {}
        with open(fd, "rb") as file:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
                raise KeyringError(f"{self._directory}/{self._name} is not our own file")
            content = file.read(_MAX_FILE)
        keys: dict[int, tuple[int, bytes]] = {}
        if not content.isascii():
            return keys
        now = time.time()
        for line in content.splitlines():
            try:
                number, created, text = line.decode("ascii").split()
                key, when, secret = int(number), int(created), bytes.fromhex(text)
            except ValueError:
                continue
            if not 0 <= key <= _MAX_ID or not secret or key in keys:
                continue
            if when < 0 or not now - EXPIRE_SECONDS <= when <= now + FUTURE_SECONDS:
                continue
            keys[key] = (when, secret)
            if len(keys) == limit:
                break
        return keys

    def _add(self, directory: int) -> None:
        """Make a key and write the file anew, without the keys that have expired."""
        lock = self._name + ".lock"
        self._lock(directory, lock)
        try:
            keys = self._load(directory, MAX_KEYS - 1)
            key = -1
            while key < 0 or key in keys:
                key = int.from_bytes(os.urandom(4), "little") & _MAX_ID
            keys[key] = (int(time.time()), os.urandom(KEY_BYTES))
            lines = [f"{n} {when} {secret.hex()}\n" for n, (when, secret) in keys.items()]
            self._save(directory, "".join(lines).encode())
            self._keys = keys
        finally:
            os.unlink(lock, dir_fd=directory)

    def _save(self, directory: int, content: bytes) -> None:
        # Not synced to the disk: the keys outlive a crash by minutes at most, and a rename is
        # all that readers on the running system need.
        draft = f"{self._name}.{os.urandom(6).hex()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=directory)
        try:
            with open(fd, "wb") as file:
                file.write(content)
            os.rename(draft, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(draft, dir_fd=directory)
            raise

    def _lock(self, directory: int, lock: str) -> None:
        """Create the lock file. Other servers of this user take the same one."""
        for _ in range(_LOCK_TRIES):
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN
                os.close(os.open(lock, flags, 0o600, dir_fd=directory))
                return
            except FileExistsError:
                self._drop_stale(directory, lock)
        raise KeyringError("Could not lock keyring file to add to it")

    @staticmethod
    def _drop_stale(directory: int, lock: str) -> None:
        try:
            about = os.stat(lock, dir_fd=directory, follow_symlinks=False)
            if time.time() - about.st_mtime > STALE_LOCK_SECONDS:
                os.unlink(lock, dir_fd=directory)
            else:
                time.sleep(_LOCK_PAUSE)
        except FileNotFoundError:
            return
