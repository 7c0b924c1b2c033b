"""Listening sockets: from an address in the configuration to sockets that can be accepted on.

Invariant: every socket is non-blocking and close-on-exec; what this process created in the file
system (socket files, nonce files) it removes in `Server.close()`, and only that: a socket file
that somebody else has put in its place meanwhile stays.

One `<listen>` element, that is one address, makes one `Server` with a guid of its own, as in the
reference implementation; when the address has several entries the first that works is taken.
A server may have several sockets (TCP on several families, systemd's), each a `Listener`.
The guid of the bus itself (GetId) is another one.

`unix:tmpdir=` makes a socket in the file system, as dbus-daemon 1.14.10 of Debian and all of
1.16 do (D-Bus Specification 0.40), not an abstract one.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import errors, ways
from .address import Address, bad, escape, parse
from .auth import Offer
from .errors import DBusError
from .process import from_errno

if TYPE_CHECKING:
    from jitney.broker.endpoint import Endpoint

MAX_PATH = 99
"""Bytes of a socket's path or abstract name: the reference implementation's limit."""

NONCE_BYTES = 16
SD_FIRST = 3

_TCP_BACKLOG = 30
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz"
_UNIX_MODES = ("path", "tmpdir", "abstract", "runtime", "dir")
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}

Warn = Callable[[str], None]


class Listener:
    """One socket to accept connections on.

    `kind` is "unix" or "tcp". `nonce`, if not empty, is what each peer must send first, before
    anything of D-Bus. `address` and `guid` are those of the server it belongs to. `offer` is
    what its peers may authenticate with; whoever accepts here sets it first. `endpoint`: whose
    clients they become, None for the bus's own door.
    """

    __slots__ = ("address", "endpoint", "guid", "kind", "nonce", "offer", "sock")

    def __init__(
        self, sock: socket.socket, address: str, guid: str, kind: str, nonce: bytes
    ) -> None:
        self.sock = sock
        self.address = address
        self.guid = guid
        self.kind = kind
        self.nonce = nonce
        self.offer: Offer | None = None
        self.endpoint: Endpoint | None = None

    def close(self) -> None:
        """Stop listening here. Files are the server's matter."""
        self.sock.close()


class Server:
    """All sockets of one address; `address` is the one to connect to, with the guid."""

    def __init__(self, sockets: list[socket.socket], address: str, nonce: bytes = b"") -> None:
        self.guid = new_guid()
        self.address = f"{address},guid={self.guid}"
        self.listeners = [
            Listener(sock, self.address, self.guid, _kind(sock), nonce) for sock in sockets
        ]
        self.socket_file: tuple[str, int, int] | None = None
        self.nonce_file: str | None = None

    def own_socket_file(self, path: str) -> None:
        """Remove this file at the end, if it is still the same one."""
        try:
            about = os.lstat(path)
        except OSError:
            return
        # The daemon changes its working directory when it forks.
        self.socket_file = (os.path.abspath(path), about.st_dev, about.st_ino)

    def own_nonce_file(self, path: str) -> None:
        """Remove this file and its directory at the end."""
        self.nonce_file = path

    def inherit(self, guid: str, address: str, socket_file: Any, nonce_file: str | None) -> None:
        """Be what the server of another process was, its files' owner included."""
        self.guid = guid
        self.address = address
        for listener in self.listeners:
            listener.guid, listener.address = guid, address
        if socket_file is not None:
            self.socket_file = tuple(socket_file)
        self.nonce_file = nonce_file

    def close(self) -> None:
        """Close the sockets, remove the files. Can be called twice, never fails."""
        for listener in self.listeners:
            listener.close()
        if self.socket_file is not None:
            path, device, inode = self.socket_file
            self.socket_file = None
            try:
                about = os.lstat(path)
                if (about.st_dev, about.st_ino) == (device, inode):
                    os.unlink(path)
            except OSError:
                pass  # gone already, or we have dropped the privileges to remove it
        if self.nonce_file is not None:
            _remove_nonce(self.nonce_file)
            self.nonce_file = None


def open_servers(addresses: Iterable[str], warn: Warn) -> list[Server]:
    """A server for each address, in their order; all or none.

    `warn` gets texts about what is not quite as it should be. Raises DBusError.
    """
    servers: list[Server] = []
    try:
        for address in addresses:
            servers.append(listen(address, warn))
    except BaseException:
        for server in servers:
            server.close()
        raise
    return servers


def printed_address(servers: list[Server]) -> str:
    """The address for clients. The last `<listen>` comes first: it has priority."""
    return ";".join(server.address for server in reversed(servers))


def listen(address: str, warn: Warn) -> Server:
    """Listen on the first entry of the address that works.

    Raises DBusError with libdbus's name and text: of the first entry that is plainly wrong,
    else of the first that failed.
    """
    entries = parse(address)
    first: DBusError | None = None
    for entry in entries:
        if entry.method in ("tcp", "nonce-tcp"):
            opener = _listen_tcp
        elif entry.method == "unix":
            _check_unix(entry)
            opener = _listen_unix
        elif entry.method == "systemd":
            opener = _listen_systemd
        else:
            continue
        try:
            return opener(entry, warn)
        except DBusError as error:
            first = first or error
    raise first or bad(f"Unknown address type '{entries[0].method}'")


def new_guid() -> str:
    """A guid as libdbus makes them: 12 random bytes, then the time in seconds; 32 hex digits."""
    return os.urandom(12).hex() + f"{int(time.time()) & 0xFFFFFFFF:08x}"


# unix:


def _check_unix(entry: Address) -> None:
    given = sum(entry.get(mode) is not None for mode in _UNIX_MODES)
    if given < 1:
        raise bad(
            "Server address of type unix was missing argument "
            "path or tmpdir or abstract or runtime or dir"
        )
    if given > 1:
        raise bad(
            'Could not parse server address: cannot specify two of "path", "tmpdir", '
            '"abstract", "runtime" and "dir" at the same time'
        )
    if entry.get("runtime") not in (None, "yes"):
        raise bad(
            'Could not parse server address: if given, the only value allowed for "runtime" '
            'is "yes"'
        )


def _listen_unix(entry: Address, warn: Warn) -> Server:
    abstract = entry.get("abstract")
    if abstract is not None:
        if not ways.ABSTRACT_SOCKETS:
            raise DBusError(
                errors.NOT_SUPPORTED,
                "Operating system does not support abstract socket namespace\n",
            )
        name = os.fsencode(abstract)
        if len(name) + 1 > MAX_PATH:
            raise bad("Abstract socket name too long")
        sock = _bind_unix(abstract, b"\0" + name)
        return Server([sock], f"unix:abstract={escape(abstract)}")
    path = _unix_path(entry)
    # Whoever is still listening there loses its clients to us; but a plain file is not ours.
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    except OSError:
        pass  # bind() will tell
    if len(os.fsencode(path)) > MAX_PATH:
        raise bad("Socket name too long")
    sock = _bind_unix(path, path)
    try:
        os.chmod(path, 0o777)
    except OSError:
        warn(f"Could not set mode 0777 on socket {path}")
    server = Server([sock], f"unix:path={escape(path)}")
    server.own_socket_file(path)
    return server


def _unix_path(entry: Address) -> str:
    if entry.get("runtime") is not None:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        if runtime is None:
            raise DBusError(errors.NOT_SUPPORTED, '"XDG_RUNTIME_DIR" is not set')
        return os.path.join(runtime, "bus")
    folder = entry.get("tmpdir") or entry.get("dir")
    if folder is not None:
        return os.path.join(folder, "dbus-" + _random_name(10))
    return entry.get("path") or ""


def _bind_unix(shown: str, name: str | bytes) -> socket.socket:
    sock = _socket(socket.AF_UNIX)
    try:
        try:
            sock.bind(name)
        except OSError as error:
            raise from_errno(error, f'Failed to bind socket "{shown}"') from error
        try:
            sock.listen(socket.SOMAXCONN)
        except OSError as error:
            if isinstance(name, str):
                os.unlink(name)
            raise from_errno(error, f'Failed to listen on socket "{shown}"') from error
    except DBusError:
        sock.close()
        raise
    return sock


# systemd:


def _listen_systemd(entry: Address, warn: Warn) -> Server:
    """Take over the sockets of the service manager, sd_listen_fds(3); once, for all of them."""
    count = _inherited_sockets()
    if not count:
        raise bad("No socket received.")
    sockets: list[socket.socket] = []
    try:
        for fd in range(SD_FIRST, SD_FIRST + count):
            sockets.append(_take_over(fd))
        address = ";".join(_bound_address(sock) for sock in sockets)
    except DBusError:
        for sock in sockets:
            sock.close()
        raise
    return Server(sockets, address)


def _take_over(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
        stream = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise from_errno(error, "Failed to verify systemd socket type") from error
    if not stream or not listening:
        sock.close()
        raise bad("Passed socket has wrong type.")
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def _inherited_sockets() -> int:
    """How many descriptors were passed to this very process; the variables are gone after."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    os.environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return 0
    return int(count)


def _bound_address(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        if isinstance(name, bytes):  # Python's way to give an abstract name
            return f"unix:abstract={escape(os.fsdecode(name[1:]))}"
        return f"unix:path={escape(name)}"
    if sock.family in _FAMILIES.values():
        family = "ipv4" if sock.family == socket.AF_INET else "ipv6"
        return f"tcp:family={family},port={name[1]},host={escape(name[0])}"
    raise DBusError(errors.FAILED, "Failed to read address from socket: Unknown socket type.")


# tcp: and nonce-tcp:


def _listen_tcp(entry: Address, warn: Warn) -> Server:
    host = entry.get("host") or "localhost"
    bind: str | None = entry.get("bind") or host
    if bind == "*":
        bind = None
    sockets, port = _bind_tcp(bind, entry.get("port") or "0", entry.get("family"), warn)
    address = f"{entry.method}:host={escape(host)},port={port}"
    families = {sock.family for sock in sockets}
    if len(families) == 1:
        address += ",family=ipv4" if socket.AF_INET in families else ",family=ipv6"
    if entry.method == "tcp":
        return Server(sockets, address)
    try:
        path, nonce = _create_nonce()
    except DBusError:
        for sock in sockets:
            sock.close()
        raise
    server = Server(sockets, f"{address},noncefile={escape(path)}", nonce)
    server.own_nonce_file(path)
    return server


def _bind_tcp(
    host: str | None, port: str, family: str | None, warn: Warn
) -> tuple[list[socket.socket], str]:
    """Sockets on every address of the host, all with the same port; and that port."""
    shown = host or "*"
    if family is not None and family not in _FAMILIES:
        raise bad(f"Unknown address family {family}")
    sockets: list[socket.socket] = []
    failures: list[DBusError] = []
    try:
        pending = _look_up(shown, host, port, family)
        while pending:
            kind, target = pending.pop(0)
            sock = _bind_one(kind, target, f"{shown}:{port}", warn, failures)
            if sock is None:
                continue
            sockets.append(sock)
            if port == "0":
                # The kernel chose a port. All other addresses are to have the same one.
                port = str(sock.getsockname()[1])
                bound = sock.getsockname()[0]
                pending = [
                    (kind, target)
                    for kind, target in _look_up(shown, host, port, family)
                    if target[0] != bound
                ]
    except DBusError:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise _combined(failures, f'Failed to bind to "{shown}":{port}')
    return sockets, port


def _look_up(
    shown: str, host: str | None, port: str, family: str | None
) -> list[tuple[int, tuple[str, int]]]:
    flags = socket.AI_ADDRCONFIG | socket.AI_PASSIVE
    wanted = socket.AF_UNSPEC if family is None else _FAMILIES[family]
    try:
        found = socket.getaddrinfo(
            host, port, wanted, socket.SOCK_STREAM, socket.IPPROTO_TCP, flags
        )
    except socket.gaierror as error:
        text = f'Failed to lookup host/port: "{shown}:{port}": {error.strerror} ({error.errno})'
        name = errors.NOT_SUPPORTED if error.errno == socket.EAI_FAMILY else errors.FAILED
        raise DBusError(name, text) from error
    except (UnicodeError, OSError) as error:
        raise DBusError(
            errors.FAILED, f'Failed to lookup host/port: "{shown}:{port}": {error}'
        ) from error
    # The rest of the tuple is IPv6's flow and scope, which bind() wants back untouched.
    return [(int(info[0]), info[4]) for info in found]  # type: ignore[misc]


def _bind_one(
    family: int, target: tuple[str, int], shown: str, warn: Warn, failures: list[DBusError]
) -> socket.socket | None:
    """A listening socket, or None (and one more failure) if this address cannot be bound.

    That is no error as long as another one can: IPv6 may be off, or "any" of IPv6 may have
    taken IPv4's place already.
    """
    sock = _socket(family)
    try:
        for level, option, name in (
            (socket.SOL_SOCKET, socket.SO_REUSEADDR, "socket option"),
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, "TCP_NODELAY socket option"),
        ):
            try:
                sock.setsockopt(level, option, 1)
            except OSError as error:
                warn(f'Failed to set {name} "{shown}": {error.strerror}')
        at = f'"{target[0]}" port {target[1]}'
        try:
            sock.bind(target)
        except OSError as error:
            failures.append(from_errno(error, f"Failed to bind socket {at}"))
            sock.close()
            return None
        try:
            sock.listen(_TCP_BACKLOG)
        except OSError as error:
            raise from_errno(error, f"Failed to listen on socket {at}") from error
    except DBusError:
        sock.close()
        raise
    return sock


def _combined(failures: list[DBusError], summary: str) -> DBusError:
    if len(failures) == 1:
        return failures[0]
    names = {failure.name for failure in failures}
    name = names.pop() if len(names) == 1 else errors.FAILED
    return DBusError(name, f"{summary} ({'; '.join(failure.text for failure in failures)})")


def _create_nonce() -> tuple[str, bytes]:
    """A nonce in a file that only we, and peers of the same user, can read."""
    base = next(
        (os.environ[name] for name in ("TMPDIR", "TMP", "TEMP") if name in os.environ), "/tmp"
    )
    folder = f"{base}/dbus_nonce-{_random_name(8)}"
    path = f"{folder}/nonce"
    nonce = os.urandom(NONCE_BYTES)
    try:
        os.mkdir(folder, 0o700)
    except OSError as error:
        text = f"Failed to create directory {folder}"
        raise DBusError(errors.FAILED, f"{text}: {error.strerror}") from error
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(nonce)
    except OSError as error:
        _remove_nonce(path)
        raise from_errno(error, f"Could not create {path}") from error
    return path, nonce


def _remove_nonce(path: str) -> None:
    for remove, target in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
        try:
            remove(target)
        except OSError:
            pass  # gone already, or no longer ours to remove


# Small things


def _socket(family: int) -> socket.socket:
    """A non-blocking stream socket; Python makes it close-on-exec."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise from_errno(error, "Failed to open socket") from error
    sock.setblocking(False)
    return sock


def _kind(sock: socket.socket) -> str:
    return "unix" if sock.family == socket.AF_UNIX else "tcp"


def _random_name(length: int) -> str:
    return "".join(_LETTERS[b % len(_LETTERS)] for b in os.urandom(length))
