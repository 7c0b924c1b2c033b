"""The SASL conversation: libdbus's own scripts, every split of the stream, and junk."""

from __future__ import annotations

import hashlib
import os
import pwd
import weakref
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.compat.auth import MAX_LINE, MAX_REJECTIONS, Auth, KeyringError, Offer
from jitney.compat.errors import DBusError

GUID = "0123456789abcdef0123456789abcdef"
UID = 1000
OK = f"OK {GUID}\r\n".encode()
REJECTED = b"REJECTED EXTERNAL DBUS_COOKIE_SHA1 ANONYMOUS\r\n"
TYPICAL = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
SCRIPTS = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data/auth")


class Ring:
    """A keyring with one key."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def owns(self, user: bytes) -> bool:
        me = pwd.getpwuid(os.geteuid())
        return user in (str(me.pw_uid).encode(), me.pw_name.encode())

    def best_key(self) -> int:
        if self.broken:
            raise KeyringError("no key")
        return 7

    def secret(self, key: int) -> bytes:
        return b"c0ffee" if key == 7 else b""


def make(
    uid: int | None = UID,
    mechanisms: tuple[str, ...] = (),
    anonymous: bool = False,
    fds: bool = True,
    ring: Ring | None = None,
) -> Auth:
    keyring = (lambda: ring) if ring else None
    return Auth(Offer(GUID, mechanisms, anonymous, keyring), uid, fds)


def talk(auth: Auth, *lines: bytes) -> list[bytes]:
    """Send lines one by one; the replies without their line ends."""
    auth.feed(b"\0")
    return [auth.feed(line + b"\r\n").removesuffix(b"\r\n") for line in lines]


def test_typical_client_in_one_write() -> None:
    auth = make()
    assert auth.feed(TYPICAL + b"l\1message") == OK + b"AGREE_UNIX_FD\r\n"
    assert auth.done
    assert not auth.failed
    assert (auth.identity, auth.mechanism, auth.unix_fds) == (UID, "EXTERNAL", True)
    assert auth.leftover == b"l\1message"
    assert auth.feed(b" more") == b""
    assert auth.leftover == b"l\1message more"


@pytest.mark.parametrize("cut", range(len(TYPICAL) + 1))
def test_any_split_is_the_same(cut: int) -> None:
    whole = TYPICAL + b"rest"
    auth = make()
    out = auth.feed(whole[:cut]) + auth.feed(whole[cut:])
    assert out == OK + b"AGREE_UNIX_FD\r\n"
    assert auth.done
    assert auth.leftover == b"rest"


def test_byte_by_byte() -> None:
    auth = make()
    out = b"".join(auth.feed(bytes([byte])) for byte in TYPICAL + b"rest")
    assert out == OK + b"AGREE_UNIX_FD\r\n"
    assert auth.done
    assert auth.leftover == b"rest"


def test_large_messages_may_follow_in_the_same_read() -> None:
    auth = make()
    auth.feed(TYPICAL + b"x" * 300_000)
    assert auth.done
    assert len(auth.leftover) == 300_000


@pytest.mark.parametrize("first", [b"A", b"AUTH EXTERNAL\r\n", b"\x01"])
def test_credentials_byte_must_be_nul(first: bytes) -> None:
    auth = make()
    assert auth.feed(first) == b""
    assert auth.failed
    assert not auth.done
    assert auth.feed(TYPICAL) == b""
    assert not auth.done


def test_empty_response_takes_the_kernels_word() -> None:
    auth = make()
    assert talk(auth, b"AUTH EXTERNAL", b"DATA", b"BEGIN") == [b"DATA", OK[:-2], b""]
    assert auth.done
    assert auth.identity == UID
    assert not auth.unix_fds


def test_empty_response_pipelined_as_sd_bus_does() -> None:
    auth = make()
    out = auth.feed(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
    assert out == b"DATA\r\n" + OK + b"AGREE_UNIX_FD\r\n"
    assert auth.done
    assert auth.identity == UID


@pytest.mark.parametrize(
    ("claim", "answer"),
    [
        (b"1000", OK[:-2]),
        (b"1001", REJECTED[:-2]),
        (b"0", REJECTED[:-2]),
        (b"01000", REJECTED[:-2]),
        (b" 1000", REJECTED[:-2]),
        (b"root", REJECTED[:-2]),
        (b"-1", REJECTED[:-2]),
    ],
)
def test_external_claims(claim: bytes, answer: bytes) -> None:
    assert talk(make(), b"AUTH EXTERNAL " + claim.hex().encode()) == [answer]


def test_external_needs_kernel_credentials() -> None:
    auth = make(uid=None)
    assert talk(auth, b"AUTH EXTERNAL 31303030", b"AUTH EXTERNAL") == [REJECTED[:-2]] * 2


def test_uid_zero_is_an_identity() -> None:
    auth = make(uid=0)
    assert talk(auth, b"AUTH EXTERNAL 30", b"BEGIN")[0] == OK[:-2]
    assert auth.done
    assert auth.identity == 0


ERRORS = {
    "unknown": b'ERROR "Unknown command"',
    "idle": b'ERROR "Not currently in an auth conversation"',
    "early": b'ERROR "Need to authenticate first"',
    "busy": b'ERROR "Sent AUTH while another AUTH in progress"',
    "late": b'ERROR "Sent AUTH while expecting BEGIN"',
    "data": b'ERROR "Sent DATA while expecting BEGIN"',
    "ascii": b'ERROR "Command contained non-ASCII"',
    "hex": b'ERROR "Invalid hex encoding"',
    "fds": b'ERROR "Unix FD passing not supported, not authenticated or otherwise not possible"',
}
HELLO = b"AUTH EXTERNAL 31303030"
NO = REJECTED[:-2]


@pytest.mark.parametrize(
    ("state", "line", "answer"),
    [
        ((), b"AUTH", NO),
        ((), b"AUTH KERBEROS_V4", NO),
        ((), b"AUTH external 31", NO),
        ((), b"CANCEL", ERRORS["idle"]),
        ((), b"DATA", ERRORS["idle"]),
        ((), b"ERROR", NO),
        ((), b'ERROR "what?"', NO),
        ((), b"NEGOTIATE_UNIX_FD", ERRORS["early"]),
        ((), b"OK 1234", ERRORS["unknown"]),
        ((), b"REJECTED EXTERNAL", ERRORS["unknown"]),
        ((), b"AGREE_UNIX_FD", ERRORS["unknown"]),
        ((), b"", ERRORS["unknown"]),
        ((), b"auth EXTERNAL", ERRORS["unknown"]),
        ((), b" AUTH EXTERNAL", ERRORS["unknown"]),
        ((), b"AUTH\xff", ERRORS["ascii"]),
        ((), b"AUTH\0", ERRORS["ascii"]),
        ((), b"AUTH EXTERNAL willy", ERRORS["hex"]),
        ((), b"AUTH EXTERNAL 31303030 ", ERRORS["hex"]),
        ((), b"AUTH EXTERNAL 3130 3030", ERRORS["hex"]),
        ((), b"AUTH\tEXTERNAL \t 31303030", OK[:-2]),
        ((b"AUTH EXTERNAL",), b"AUTH EXTERNAL", ERRORS["busy"]),
        ((b"AUTH EXTERNAL",), b"CANCEL", NO),
        ((b"AUTH EXTERNAL",), b"ERROR", NO),
        ((b"AUTH EXTERNAL",), b"DATA zz", ERRORS["hex"]),
        ((b"AUTH EXTERNAL",), b"DATA 31303030", OK[:-2]),
        ((b"AUTH EXTERNAL",), b"DATA 31303031", NO),
        ((b"AUTH EXTERNAL",), b"NEGOTIATE_UNIX_FD", ERRORS["early"]),
        ((b"AUTH EXTERNAL",), b"WHAT", ERRORS["unknown"]),
        ((HELLO,), b"AUTH EXTERNAL", ERRORS["late"]),
        ((HELLO,), b"DATA", ERRORS["data"]),
        ((HELLO,), b"CANCEL", NO),
        ((HELLO,), b"ERROR", NO),
        ((HELLO,), b"NEGOTIATE_UNIX_FD please", b"AGREE_UNIX_FD"),
        ((HELLO, b"NEGOTIATE_UNIX_FD"), b"NEGOTIATE_UNIX_FD", b"AGREE_UNIX_FD"),
        ((HELLO,), b"OK", ERRORS["unknown"]),
        ((HELLO,), b"BEGIN", b""),
    ],
)
def test_state_table(state: tuple[bytes, ...], line: bytes, answer: bytes) -> None:
    auth = make()
    assert talk(auth, *state, line)[-1] == answer
    assert not auth.failed


@pytest.mark.parametrize("before", [(), (b"AUTH EXTERNAL",), (HELLO, b"CANCEL")])
def test_begin_too_early_ends_it(before: tuple[bytes, ...]) -> None:
    auth = make()
    assert talk(auth, *before, b"BEGIN")[-1] == b""
    assert auth.failed
    assert not auth.done
    assert auth.identity is None


def test_cancel_forgets_the_identity_and_allows_another_try() -> None:
    auth = make()
    talk(auth, HELLO, b"CANCEL")
    assert auth.identity is None
    assert auth.feed(HELLO + b"\r\nBEGIN\r\n") == OK
    assert auth.done
    assert auth.identity == UID


def test_no_descriptors_over_tcp() -> None:
    auth = make(fds=False)
    assert talk(auth, HELLO, b"NEGOTIATE_UNIX_FD", b"BEGIN")[1] == ERRORS["fds"]
    assert auth.done
    assert not auth.unix_fds


def test_only_what_is_configured_is_offered() -> None:
    auth = make(mechanisms=("EXTERNAL",), anonymous=True)
    assert talk(auth, b"AUTH ANONYMOUS", b"AUTH") == [b"REJECTED EXTERNAL"] * 2
    auth = make(mechanisms=("ANONYMOUS", "EXTERNAL"))
    assert talk(auth, b"AUTH") == [b"REJECTED EXTERNAL ANONYMOUS"]


def test_unknown_mechanism_in_the_configuration() -> None:
    with pytest.raises(DBusError) as caught:
        Offer(GUID, ["EXTERNAL", "FOO"])
    assert caught.value.text == (
        'Unsupported auth mechanism "FOO" in bus config file detected. Supported mechanisms are '
        '"EXTERNAL, DBUS_COOKIE_SHA1, ANONYMOUS".'
    )


def test_anonymous_where_allowed() -> None:
    auth = make(anonymous=True)
    assert talk(auth, b"AUTH ANONYMOUS " + b"libdbus 1".hex().encode(), b"BEGIN")[0] == OK[:-2]
    assert auth.done
    assert auth.identity is None
    assert auth.mechanism == "ANONYMOUS"


def test_anonymous_is_shown_the_door_after_begin() -> None:
    auth = make()
    assert talk(auth, b"AUTH ANONYMOUS", b"BEGIN") == [OK[:-2], b""]
    assert auth.failed
    assert not auth.done


@pytest.mark.parametrize("trace", [b"\xff", b"a\0b"])
def test_anonymous_trace_must_be_text(trace: bytes) -> None:
    assert talk(make(anonymous=True), b"AUTH ANONYMOUS " + trace.hex().encode()) == [NO]


def test_rejections_run_out() -> None:
    auth = make()
    auth.feed(b"\0")
    for turn in range(MAX_REJECTIONS):
        assert not auth.failed, turn
        assert auth.feed(b"AUTH\r\n") == REJECTED
    assert auth.failed
    assert auth.feed(TYPICAL[1:]) == b""
    assert not auth.done


def test_a_line_has_an_end() -> None:
    auth = make()
    auth.feed(b"\0" + b"A" * MAX_LINE)
    assert not auth.failed
    auth.feed(b"AA")
    assert auth.failed
    assert not auth.done
    auth = make()
    auth.feed(b"\0AUTH EXTERNAL " + b"3" * MAX_LINE + b"\r\nBEGIN\r\n")
    assert auth.failed


def test_a_flood_of_commands_in_one_read() -> None:
    auth = make()
    out = auth.feed(b"\0" + b"\r\n" * 100_000)
    assert auth.failed
    assert len(out) < MAX_LINE + 100


def cookie(auth: Auth, user: bytes) -> tuple[bytes, bytes]:
    """Start DBUS_COOKIE_SHA1; context and id, and the server's challenge."""
    (answer,) = talk(auth, b"AUTH DBUS_COOKIE_SHA1 " + user.hex().encode())
    assert answer.startswith(b"DATA ")
    context, key, challenge = bytes.fromhex(answer[5:].decode()).split(b" ")
    return context + b" " + key, challenge


def proof(challenge: bytes, secret: bytes, mine: bytes = b"abc") -> bytes:
    digest = hashlib.sha1(challenge + b":" + mine + b":" + secret).hexdigest().encode()
    return b"DATA " + (mine + b" " + digest).hex().encode()


def test_cookie() -> None:
    auth = make(uid=None, ring=Ring())
    head, challenge = cookie(auth, str(os.geteuid()).encode())
    assert head == b"org_freedesktop_general 7"
    assert len(challenge) == 32
    assert auth.feed(proof(challenge, b"c0ffee") + b"\r\nBEGIN\r\n") == OK
    assert auth.done
    assert auth.identity == os.geteuid()
    assert auth.mechanism == "DBUS_COOKIE_SHA1"


def test_cookie_by_user_name() -> None:
    auth = make(uid=None, ring=Ring())
    _, challenge = cookie(auth, pwd.getpwuid(os.geteuid()).pw_name.encode())
    assert auth.feed(proof(challenge, b"c0ffee") + b"\r\n") == OK


@pytest.mark.parametrize("user", [b"", b"12345678", b"no such user", b"\xff\0"])
def test_cookie_for_nobody_else(user: bytes) -> None:
    auth = make(uid=None, ring=Ring())
    assert talk(auth, b"AUTH DBUS_COOKIE_SHA1 " + user.hex().encode()) == [NO]


@pytest.mark.parametrize(
    "answer",
    [b"DATA", b"DATA " + b"abc".hex().encode(), b"DATA " + b" x".hex().encode(), b"CANCEL"],
)
def test_cookie_answers_that_are_none(answer: bytes) -> None:
    auth = make(uid=None, ring=Ring())
    cookie(auth, str(os.geteuid()).encode())
    assert auth.feed(answer + b"\r\n") == REJECTED
    assert auth.identity is None


def test_cookie_wrong_and_again_with_a_new_challenge() -> None:
    auth = make(uid=None, ring=Ring())
    me = str(os.geteuid()).encode()
    _, first = cookie(auth, me)
    assert auth.feed(proof(first, b"wrong") + b"\r\n") == REJECTED
    answer = auth.feed(b"AUTH DBUS_COOKIE_SHA1 " + me.hex().encode() + b"\r\n")
    second = bytes.fromhex(answer[5:-2].decode()).split(b" ")[2]
    assert first != second
    assert auth.feed(proof(first, b"c0ffee") + b"\r\n") == REJECTED


def test_cookie_without_a_keyring() -> None:
    me = str(os.geteuid()).encode().hex().encode()
    assert talk(make(ring=None), b"AUTH DBUS_COOKIE_SHA1 " + me) == [NO]
    assert talk(make(ring=Ring(broken=True)), b"AUTH DBUS_COOKIE_SHA1 " + me) == [NO]


def words(script: Path) -> list[str]:
    lines = script.read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def server_scripts() -> list[Path]:
    if not SCRIPTS.is_dir():
        return []
    return sorted(path for path in SCRIPTS.glob("*.auth-script") if "SERVER" in words(path))


def fill(text: str) -> bytes:
    """The words of a script's SEND that stand for this process's user."""
    me = pwd.getpwuid(os.geteuid())
    known = {
        "WRONG_USERNAME_HEX": b"no such user".hex(),
        "WRONG_USERID_HEX": str(os.geteuid() + 1).encode().hex(),
        "USERNAME_HEX": me.pw_name.encode().hex(),
        "USERID_HEX": str(me.pw_uid).encode().hex(),
    }
    for word, value in known.items():
        text = text.replace(word, value)
    return text.strip("'").encode().decode("unicode_escape").encode()


@pytest.mark.skipif(not SCRIPTS.is_dir(), reason="dbus-tests is not installed")
@pytest.mark.parametrize("script", server_scripts(), ids=lambda path: path.stem)
def test_scripts_of_libdbus(script: Path) -> None:
    lines = words(script)
    uid: int | None = os.geteuid()
    if "NO_CREDENTIALS" in lines:
        uid = None
    elif "ROOT_CREDENTIALS" in lines:
        uid = 0
    elif "SILLY_CREDENTIALS" in lines:
        uid = 4711
    auth = make(uid=uid, anonymous=True, ring=Ring())
    auth.feed(b"\0")
    out = b""
    for line in lines:
        command, _, rest = line.partition(" ")
        if command == "SEND":
            out += auth.feed(fill(rest) + b"\r\n")
        elif command == "EXPECT_COMMAND":
            assert out.split(b" ")[0].rstrip() == rest.encode(), (line, out)
            out = b""
        elif command == "EXPECT_HAVE_NO_CREDENTIALS":
            assert auth.identity is None
        elif command == "EXPECT_HAVE_SOME_CREDENTIALS":
            assert auth.identity is not None
        elif command == "EXPECT_UNUSED":
            assert auth.leftover == fill(rest)
        elif command == "EXPECT_STATE":
            assert auth.done == rest.startswith("AUTHENTICATED")
            assert auth.failed == (rest == "NEED_DISCONNECT")


PIECES = st.one_of(
    st.sampled_from(
        [
            b"AUTH ",
            b"EXTERNAL ",
            b"ANONYMOUS ",
            b"DBUS_COOKIE_SHA1 ",
            b"31303030",
            b"30",
            b"\r\n",
            b"DATA ",
            b"CANCEL",
            b"ERROR",
            b"NEGOTIATE_UNIX_FD",
            b"BEGIN",
            b"\r",
            b"\n",
            b"\x00",
            b" ",
        ]
    ),
    st.binary(max_size=20),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=30), st.booleans(), st.booleans())
def test_junk_never_raises_and_never_gets_in(
    pieces: list[bytes], first_nul: bool, known: bool
) -> None:
    auth = make(uid=UID if known else None, mechanisms=("EXTERNAL", "ANONYMOUS"), ring=Ring())
    whole = (b"\0" if first_nul else b"") + b"".join(pieces)
    out = b"".join(auth.feed(piece) for piece in ([b"\0"] if first_nul else []) + pieces)
    again = make(uid=UID if known else None, mechanisms=("EXTERNAL", "ANONYMOUS"), ring=Ring())
    assert again.feed(whole) == out
    assert (again.done, again.failed) == (auth.done, auth.failed)
    assert not (auth.done and auth.failed)
    if auth.done:
        assert first_nul
        assert known
        assert auth.identity == UID
        assert b"BEGIN" in whole
        assert OK in out
    else:
        assert auth.leftover == b""


def test_the_keyring_is_let_go_at_the_end() -> None:
    rings: list[weakref.ref[Ring]] = []

    def keyring() -> Ring:
        ring = Ring()
        rings.append(weakref.ref(ring))
        return ring

    auth = Auth(Offer(GUID, keyring=keyring), None, False)
    _, challenge = cookie(auth, str(os.geteuid()).encode())
    assert rings[0]() is not None
    auth.feed(proof(challenge, b"c0ffee") + b"\r\nBEGIN\r\n")
    assert auth.done
    assert rings[0]() is None


WHOLE = (
    b"\0AUTH EXTERNAL %s\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
    b"\0AUTH EXTERNAL %s\r\nBEGIN\r\n",
    b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
    b"\0AUTH\r\nAUTH EXTERNAL %s\r\nBEGIN\r\n",
    b"\0AUTH ANONYMOUS\r\nBEGIN\r\n",
    b"\0AUTH EXTERNAL %s\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nBEGIN\r\n",
    b"\0BEGIN\r\nBEGIN\r\n",
)


@pytest.mark.parametrize("text", WHOLE)
@pytest.mark.parametrize("rest", [b"", b"l\1\0\1", b"\r\nBEGIN\r\n"])
def test_a_conversation_that_is_remembered_ends_as_it_did(text: bytes, rest: bytes) -> None:
    offer = Offer("0" * 32, [], True)
    for uid in (5, 6, 5):
        for fds in (True, False, True):
            for said in (5, 6):
                if b"%s" not in text and said == 6:
                    continue
                data = (text % str(said).encode().hex().encode() if b"%s" in text else text) + rest
                known, fresh = Auth(offer, uid, fds), Auth(Offer("0" * 32, [], True), uid, fds)
                answer = b"".join(fresh.feed(data[i : i + 1]) for i in range(len(data)))
                assert known.feed(data) == answer
                for what in ("done", "failed", "identity", "mechanism", "unix_fds"):
                    assert getattr(known, what) == getattr(fresh, what), what
                assert known.leftover == fresh.leftover
    assert len(offer.usual) <= 4


def test_not_everything_is_remembered() -> None:
    offer = Offer("0" * 32)
    for uid in range(1000):
        name = str(uid).encode().hex().encode()
        assert Auth(offer, uid, True).feed(b"\0AUTH EXTERNAL " + name + b"\r\nBEGIN\r\n")
    assert len(offer.usual) < 100
