"""The server's side of the SASL conversation that opens every connection, without any I/O.

Invariant: nothing that a peer sends makes it further than its last `BEGIN`, and `done` is only
ever set for an identity that one of the offered mechanisms has proved (or for an anonymous peer
where the bus lets those in). Whatever the bytes are and however they are cut, `feed()` returns
what is to be sent and never raises.

Protocol: D-Bus Specification, "Authentication Protocol". Replies, their texts and the limits
(16 KiB a line, six rejections) are the reference implementation's, which clients have come to
know.

    peer                                  bus
    NUL AUTH EXTERNAL 31303030        ->
                                      <-  OK 1234deadbeef...
    NEGOTIATE_UNIX_FD                 ->
                                      <-  AGREE_UNIX_FD
    BEGIN, then messages              ->
"""

from __future__ import annotations

import os
from binascii import unhexlify
from collections.abc import Callable, Sequence
from typing import Protocol

from .errors import FAILED, DBusError

MAX_LINE = 16 * 1024
"""Bytes of one line, and of the replies to one read: beyond that somebody is playing."""

MAX_REJECTIONS = 6

EXTERNAL = b"EXTERNAL"
COOKIE_SHA1 = b"DBUS_COOKIE_SHA1"
ANONYMOUS = b"ANONYMOUS"

# In the order in which REJECTED offers them; clients try them in that order.
MECHANISMS = (EXTERNAL, COOKIE_SHA1, ANONYMOUS)

COOKIE_CONTEXT = b"org_freedesktop_general"
_CHALLENGE_BYTES = 16

# States. The first is the credentials byte, the last two are ends.
_NUL, _WAIT_AUTH, _WAIT_DATA, _WAIT_BEGIN, _DONE, _FAILED = range(6)

# What to do on a command. Numbers below _ERRORS are acts, the others ERROR replies.
_START, _RESPONSE, _REJECT, _AGREE, _FINISH, _DROP = range(6)
_ERRORS = 10
(
    _E_UNKNOWN,
    _E_IDLE,
    _E_EARLY,
    _E_BUSY,
    _E_AUTH_LATE,
    _E_DATA_LATE,
    _E_ASCII,
    _E_HEX,
    _E_NO_FDS,
) = range(_ERRORS, _ERRORS + 9)

_ERROR_REPLIES = (
    b'ERROR "Unknown command"\r\n',
    b'ERROR "Not currently in an auth conversation"\r\n',
    b'ERROR "Need to authenticate first"\r\n',
    b'ERROR "Sent AUTH while another AUTH in progress"\r\n',
    b'ERROR "Sent AUTH while expecting BEGIN"\r\n',
    b'ERROR "Sent DATA while expecting BEGIN"\r\n',
    b'ERROR "Command contained non-ASCII"\r\n',
    b'ERROR "Invalid hex encoding"\r\n',
    b'ERROR "Unix FD passing not supported, not authenticated or otherwise not possible"\r\n',
)

# The state table of the specification. Columns: waiting for AUTH, for DATA, for BEGIN.
_TABLE: dict[bytes, tuple[int, int, int]] = {
    b"AUTH": (_START, _E_BUSY, _E_AUTH_LATE),
    b"DATA": (_E_IDLE, _RESPONSE, _E_DATA_LATE),
    b"CANCEL": (_E_IDLE, _REJECT, _REJECT),
    b"ERROR": (_REJECT, _REJECT, _REJECT),
    b"NEGOTIATE_UNIX_FD": (_E_EARLY, _E_EARLY, _AGREE),
    b"BEGIN": (_DROP, _DROP, _FINISH),
}


MAX_USUAL = 64
"""So many conversations an Offer remembers, of 256 bytes each at most."""


class KeyringError(Exception):
    """The cookies of DBUS_COOKIE_SHA1 cannot be had; the peer is rejected, the bus goes on."""


class Keyring(Protocol):
    """Where DBUS_COOKIE_SHA1 takes its secrets from; jitney.compat.cookies has the real one."""

    def owns(self, user: bytes) -> bool:
        """True if `user` (a name or a decimal uid) is the user the bus itself runs as."""
        ...

    def best_key(self) -> int:
        """The id of a key young enough for a challenge. Raises KeyringError."""
        ...

    def secret(self, key: int) -> bytes:
        """The key in lower-case hex, or b"" if there is none of this id."""
        ...


def check_mechanisms(names: Sequence[str]) -> None:
    """Raise DBusError, in dbus-daemon's words, if the configuration names what does not exist."""
    known = [name.decode() for name in MECHANISMS]
    for name in names:
        if name not in known:
            raise DBusError(
                FAILED,
                f'Unsupported auth mechanism "{name}" in bus config file detected. '
                f'Supported mechanisms are "{", ".join(known)}".',
            )


class Offer:
    """What one listening server offers to its peers; made once, shared by all conversations.

    `usual` remembers whole conversations that came in one piece and ended well, since most clients
    of a user say the same: (uid, fds possible, all up to BEGIN) to (answer, fds agreed). They are
    EXTERNAL's, in which what was said and who said it decide everything.

    `guid` is the server's, 32 hex digits. `mechanisms` are those of the configuration's `<auth>`
    elements; none at all means any. `keyring` makes the Keyring for a DBUS_COOKIE_SHA1
    conversation. Raises DBusError for a mechanism that does not exist.
    """

    def __init__(
        self,
        guid: str,
        mechanisms: Sequence[str] = (),
        allow_anonymous: bool = False,
        keyring: Callable[[], Keyring] | None = None,
    ) -> None:
        check_mechanisms(mechanisms)
        offered = [name for name in MECHANISMS if not mechanisms or name.decode() in mechanisms]
        self.mechanisms: frozenset[bytes] = frozenset(offered)
        self.ok: bytes = b"OK %b\r\n" % guid.encode("ascii")
        self.rejected: bytes = b"%b\r\n" % b" ".join([b"REJECTED", *offered])
        self.allow_anonymous: bool = allow_anonymous
        self.keyring: Callable[[], Keyring] | None = keyring
        self.usual: dict[tuple[int | None, bool, bytes], tuple[bytes, bool]] = {}


class Auth:
    """One peer's conversation, up to and including its BEGIN.

    `uid` is what the kernel says about the socket's other end (None where it cannot say, as on
    TCP), `fds_possible` whether the socket could carry file descriptors.

    After each `feed()` look at `done` and `failed`. When done, `identity` is the proved uid
    (None: anonymous), `mechanism` the name of the one that did it, `unix_fds` says whether file
    descriptors may be passed, and `leftover` holds the bytes that followed BEGIN, which are
    messages already. When failed, send what `feed()` returned, then disconnect; `reason` is for
    the log.
    """

    def __init__(self, offer: Offer, uid: int | None, fds_possible: bool) -> None:
        self.done: bool = False
        self.failed: bool = False
        self.reason: str = ""
        self.identity: int | None = None
        self.mechanism: str = ""
        self.unix_fds: bool = False
        self.leftover: bytes = b""
        self._offer: Offer = offer
        self._uid: int | None = uid
        self._fds_possible: bool = fds_possible
        self._state: int = _NUL
        self._buffer: bytes = b""
        self._out: bytes = b""
        self._rejections: int = 0
        self._mechanism: bytes = b""
        self._claimed: bytes = b""
        self._prompted: bool = False
        self._keyring: Keyring | None = None
        self._key: int = -1
        self._challenge: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """Take what the peer sent, return what to send to it (b"" if nothing).

        Bytes that come when the conversation is over are kept in `leftover` if it went well,
        else thrown away.
        """
        if self._state == _DONE:
            self.leftover += data
            return b""
        if self._state == _FAILED:
            return b""
        if self._state == _NUL and not self._buffer:
            return self._feed_first(data)
        return self._feed(data)

    def _feed_first(self, data: bytes) -> bytes:
        """The first that comes, which may be all there is to say."""
        end: int = _find_begin(data)
        if not end:
            return self._feed(data)
        key = (self._uid, self._fds_possible, data[:end])
        known = self._offer.usual.get(key)
        if known is not None:
            self.identity = self._uid
            self.mechanism = "EXTERNAL"
            self.unix_fds = known[1]
            self.leftover = data[end:]
            self.done = True
            self._state = _DONE
            return known[0]
        answer: bytes = self._feed(data)
        usual = self._offer.usual
        if (
            self.done
            and self._mechanism == EXTERNAL
            and len(data) - len(self.leftover) == end
            and len(usual) < MAX_USUAL
        ):
            usual[key] = (answer, self.unix_fds)
        return answer

    def _feed(self, data: bytes) -> bytes:
        buffer: bytes
        line: bytes
        start: int = 0
        end: int

        buffer = self._buffer + data if self._buffer else data
        if self._state == _NUL:
            if not buffer:
                return b""
            if buffer[0] != 0:
                self._fail("Credentials byte was not nul")
                return b""
            start = 1
            self._state = _WAIT_AUTH
        while self._state < _DONE:
            end = _find_line(buffer, start)
            if (end if end >= 0 else len(buffer)) - start > MAX_LINE or len(self._out) > MAX_LINE:
                self._fail("excessive data buffered in auth phase")
                break
            if end < 0:
                self._buffer = buffer[start:] if start else buffer
                break
            line = buffer[start:end]
            start = end + 2
            self._command(line)
        if self._state == _DONE:
            self.leftover = buffer[start:]
        if self._state >= _DONE:
            self._buffer = b""
            self._keyring = None
        data = self._out
        self._out = b""
        return data

    def _command(self, line: bytes) -> None:
        """Obey one line, given without its CR LF."""
        act: int
        word: bytes = line
        rest: bytes = b""
        blank: int

        if not _clean(line):
            self._out += _ERROR_REPLIES[_E_ASCII - _ERRORS]
            return
        blank = _find_blank(line)
        if blank >= 0:
            word = line[:blank]
            rest = line[blank:].lstrip(b" \t")
        row = _TABLE.get(word)
        act = _E_UNKNOWN if row is None else row[self._state - _WAIT_AUTH]

        if act == _AGREE and not self._fds_possible:
            act = _E_NO_FDS
        if act >= _ERRORS:
            self._out += _ERROR_REPLIES[act - _ERRORS]
        elif act == _START:
            self._start(rest)
        elif act == _RESPONSE:
            self._response(rest)
        elif act == _REJECT:
            self._reject()
        elif act == _AGREE:
            self.unix_fds = True
            self._out += b"AGREE_UNIX_FD\r\n"
        elif act == _FINISH:
            self._finish()
        else:
            self._fail("BEGIN without authentication")

    def _start(self, rest: bytes) -> None:
        """AUTH [mechanism [initial response]]"""
        name: bytes = rest
        response: bytes = b""
        blank: int = _find_blank(rest)

        if blank >= 0:
            name = rest[:blank]
            response = rest[blank:].lstrip(b" \t")
        if name not in self._offer.mechanisms:
            self._reject()
            return
        self._mechanism = name
        self._response(response)

    def _response(self, text: bytes) -> None:
        """The hex-encoded data of an AUTH or DATA command, for the mechanism in use."""
        data: bytes
        # An odd last digit is the high half of a byte, as in the reference implementation.
        try:
            data = unhexlify(text + b"0" if len(text) & 1 else text)
        except ValueError:
            self._out += _ERROR_REPLIES[_E_HEX - _ERRORS]
            return
        if self._mechanism == EXTERNAL:
            self._external(data)
        elif self._mechanism == ANONYMOUS:
            self._anonymous(data)
        elif self._key < 0:
            self._cookie_challenge(data)
        else:
            self._cookie_answer(data)

    def _external(self, data: bytes) -> None:
        """EXTERNAL: the kernel's word on who the peer is, which the peer may only repeat."""
        if self._uid is None:
            self._reject()
            return
        if data:
            if self._claimed:
                self._reject()
                return
            self._claimed = data
        if not self._claimed and not self._prompted:
            self._prompted = True
            self._out += b"DATA\r\n"
            self._state = _WAIT_DATA
            return
        if self._claimed and self._claimed != b"%d" % self._uid:
            self._reject()
            return
        self.identity = self._uid
        self._accept()

    def _anonymous(self, data: bytes) -> None:
        """ANONYMOUS: anybody, with a trace text that nobody reads but that must be UTF-8."""
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            self._reject()
            return
        if b"\0" in data:
            self._reject()
            return
        self.identity = None
        self._accept()

    def _cookie_challenge(self, user: bytes) -> None:
        """DBUS_COOKIE_SHA1, first half: which user, answered by which cookie and a challenge."""
        try:
            if self._keyring is None:
                if self._offer.keyring is None:
                    self._reject()
                    return
                self._keyring = self._offer.keyring()
            # Nobody but the bus's own user, or we would read and write in a home directory
            # whose owner may have put symbolic links there (CVE-2019-12749).
            if not self._keyring.owns(user):
                self._reject()
                return
            self._key = self._keyring.best_key()
        except KeyringError:
            self._reject()
            return
        self._challenge = os.urandom(_CHALLENGE_BYTES).hex().encode()
        text = b"%b %d %b" % (COOKIE_CONTEXT, self._key, self._challenge)
        self._out += b"DATA %b\r\n" % text.hex().encode()
        self._state = _WAIT_DATA

    def _cookie_answer(self, data: bytes) -> None:
        """DBUS_COOKIE_SHA1, second half: the peer's own challenge and the proof."""
        import hashlib
        import hmac

        blank: int = _find_blank(data)
        theirs: bytes = data[:blank] if blank >= 0 else b""
        proof: bytes = data[blank:].lstrip(b" \t") if blank >= 0 else b""
        cookie = b"" if self._keyring is None else self._keyring.secret(self._key)
        if not theirs or not proof or not cookie:
            self._reject()
            return
        right = hashlib.sha1(
            b"%b:%b:%b" % (self._challenge, theirs, cookie), usedforsecurity=False
        ).hexdigest()
        if not hmac.compare_digest(proof, right.encode()):
            self._reject()
            return
        self.identity = os.geteuid()
        self._accept()

    def _accept(self) -> None:
        self._out += self._offer.ok
        self._state = _WAIT_BEGIN

    def _reject(self) -> None:
        """Back to the start, with one chance less."""
        self._out += self._offer.rejected
        self.identity = None
        self._mechanism = b""
        self._claimed = b""
        self._prompted = False
        self._key = -1
        self._challenge = b""
        self._state = _WAIT_AUTH
        self._rejections += 1
        if self._rejections >= MAX_REJECTIONS:
            self._fail("too many failed attempts")

    def _finish(self) -> None:
        if self._mechanism == ANONYMOUS and not self._offer.allow_anonymous:
            self._fail("anonymous peers are not allowed")
            return
        self.mechanism = self._mechanism.decode()
        self.done = True
        self._state = _DONE

    def _fail(self, reason: str) -> None:
        self.failed = True
        self.reason = reason
        self.identity = None
        self._state = _FAILED


def _find_blank(text: bytes) -> int:
    """Where the first space or tab is; -1 if nowhere."""
    i: int
    c: int
    for i in range(len(text)):
        c = text[i]
        if c == 32 or c == 9:
            return i
    return -1


def _find_line(text: bytes, start: int) -> int:
    """Where the next CR LF is; -1 if nowhere."""
    i: int
    for i in range(start, len(text) - 1):
        if text[i] == 13 and text[i + 1] == 10:
            return i
    return -1


def _find_begin(text: bytes) -> int:
    """Where the first line that is BEGIN ends; 0 if there is none in the first 256 bytes."""
    end: int = text.find(b"\r\nBEGIN\r\n", 0, 256)
    return end + 9 if end >= 0 else 0


def _clean(text: bytes) -> bool:
    """Whether all of it is ASCII, and no NUL."""
    i: int
    c: int
    for i in range(len(text)):
        c = text[i]
        if c == 0 or c > 127:
            return False
    return True
