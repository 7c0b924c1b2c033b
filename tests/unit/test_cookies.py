"""The cookie keyring: files as libdbus leaves and expects them, and none but our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from jitney.compat import cookies
from jitney.compat.auth import Auth, KeyringError, Offer
from jitney.compat.cookies import Keyring

NAME = "org_freedesktop_general"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / ".dbus-keyrings"
    path.mkdir(mode=0o700)
    return path


def put(folder: Path, *lines: str) -> None:
    (folder / NAME).write_text("".join(line + "\n" for line in lines))


def get(folder: Path) -> dict[int, tuple[int, str]]:
    lines = [line.split() for line in (folder / NAME).read_text().splitlines()]
    return {int(key): (int(when), secret) for key, when, secret in lines}


def test_makes_directory_file_and_key(tmp_path: Path) -> None:
    ring = Keyring(str(tmp_path))
    key = ring.best_key()
    folder = tmp_path / ".dbus-keyrings"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == [NAME]  # no lock, no draft
    when, secret = get(folder)[key]
    assert ring.secret(key) == secret.encode()
    assert len(secret) == 2 * cookies.KEY_BYTES
    assert abs(when - time.time()) < 5
    assert ring.secret(key + 1) == b""


def test_a_recent_key_is_used_again(tmp_path: Path) -> None:
    key = Keyring(str(tmp_path)).best_key()
    assert Keyring(str(tmp_path)).best_key() == key


def test_ages(folder: Path, tmp_path: Path) -> None:
    now = int(time.time())
    put(
        folder,
        f"1 {now - cookies.NEW_KEY_SECONDS - 5} aa",  # too old to be used, not to be answered
        f"2 {now - cookies.EXPIRE_SECONDS - 5} bb",  # expired
        f"3 {now + cookies.FUTURE_SECONDS + 60} cc",  # from too far in the future
        f"4 -{now} dd",
    )
    ring = Keyring(str(tmp_path))
    key = ring.best_key()
    assert key not in (1, 2, 3, 4)
    assert set(get(folder)) == {1, key}
    assert ring.secret(1) == b"aa"


def test_nonsense_is_skipped(folder: Path, tmp_path: Path) -> None:
    now = int(time.time())
    put(folder, "", "x", "1 2", f"a {now} aa", f"-1 {now} aa", f"2147483648 {now} aa")
    with open(folder / NAME, "a") as file:
        file.write(f"5 {now} xyz\n6 {now} \n7 {now} aa bb\n8 {now} C0FFEE\n")
    ring = Keyring(str(tmp_path))
    assert ring.best_key() == 8
    assert ring.secret(8) == b"c0ffee"


def test_a_file_with_too_many_keys(folder: Path, tmp_path: Path) -> None:
    old = int(time.time()) - cookies.NEW_KEY_SECONDS - 5
    put(folder, *(f"{n} {old} aa" for n in range(1000)))
    Keyring(str(tmp_path)).best_key()
    assert len(get(folder)) == cookies.MAX_KEYS


def test_not_ascii_is_started_anew(folder: Path, tmp_path: Path) -> None:
    (folder / NAME).write_bytes(b"\xff\xfe")
    key = Keyring(str(tmp_path)).best_key()
    assert set(get(folder)) == {key}


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o770, 0o701])
def test_directory_must_be_private(folder: Path, tmp_path: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(KeyringError, match="not private"):
        Keyring(str(tmp_path)).best_key()


@pytest.mark.weakness("CVE-2019-12749")
def test_directory_may_not_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / ".dbus-keyrings").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyringError):
        Keyring(str(tmp_path)).best_key()
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.weakness("CVE-2019-12749")
def test_file_may_not_be_a_link(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.write_text(f"1 {int(time.time())} aa\n")
    (folder / NAME).symlink_to(target)
    with pytest.raises(KeyringError):
        Keyring(str(tmp_path)).best_key()
    assert target.read_text().startswith("1 ")


def test_file_may_not_be_a_fifo(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / NAME)
    with pytest.raises(KeyringError, match="not our own file"):
        Keyring(str(tmp_path)).best_key()


def test_lock_of_somebody_else_does_not_hold_the_bus_up(folder: Path, tmp_path: Path) -> None:
    (folder / (NAME + ".lock")).touch()
    # libdbus would wait for eight seconds.
    start = time.monotonic()
    with pytest.raises(KeyringError, match="Could not lock"):
        Keyring(str(tmp_path)).best_key()
    assert time.monotonic() - start < 5
    assert (folder / (NAME + ".lock")).exists()


def test_stale_lock_is_removed(folder: Path, tmp_path: Path) -> None:
    lock = folder / (NAME + ".lock")
    lock.touch()
    past = time.time() - cookies.STALE_LOCK_SECONDS - 1
    os.utime(lock, (past, past))
    assert Keyring(str(tmp_path)).best_key() >= 0
    assert not lock.exists()


def test_no_home_is_no_keyring(tmp_path: Path) -> None:
    with pytest.raises(KeyringError):
        Keyring(str(tmp_path / "nowhere")).best_key()


@pytest.mark.parametrize(
    ("user", "ours"),
    [("{uid}", True), ("{uid}1", False), ("0{uid}", False), ("", False), ("no such user", False)],
)
def test_owner(tmp_path: Path, user: str, ours: bool) -> None:
    name = user.format(uid=os.geteuid()).encode()
    assert Keyring(str(tmp_path)).owns(name) is ours


def test_owner_by_name(tmp_path: Path) -> None:
    import pwd

    name = pwd.getpwuid(os.geteuid()).pw_name.encode()
    assert Keyring(str(tmp_path)).owns(name)
    assert not Keyring(str(tmp_path)).owns(b"\xff\0")


def serve_once(server: socket.socket, offer: Offer, seen: list[Auth]) -> None:
    """Lead one peer through its authentication, then hang up."""
    peer, _ = server.accept()
    with peer:
        peer.settimeout(2)  # GLib falls silent when it has no such cookie
        auth = Auth(offer, None, False)
        seen.append(auth)
        while not auth.done and not auth.failed:
            try:
                data = peer.recv(4096)
            except TimeoutError:
                return
            if not data:
                return
            peer.sendall(auth.feed(data))


CLIENTS = {
    # libdbus takes the home directory from the user database, but for its debug build.
    "libdbus": (
        ["/usr/lib/dbus-1.0/debug-build/bin/dbus-send", "--bus={}", "/", "a.b"],
        {"LD_LIBRARY_PATH": "/usr/lib/dbus-1.0/debug-build/lib"},
    ),
    "glib": (["gdbus", "emit", "--address={}", "-o", "/", "-s", "a.b"], {}),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("same_keyring", [True, False])
def test_real_client(tmp_path: Path, client: str, same_keyring: bool) -> None:
    """A real client proves itself by the file that we write, and cannot by another one."""
    words, environ = CLIENTS[client]
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]}")
    ours = tmp_path / "ours"
    theirs = ours if same_keyring else tmp_path / "theirs"
    for home in {ours, theirs}:
        home.mkdir()
    if not same_keyring:
        Keyring(str(theirs)).best_key()
    offer = Offer("0" * 32, ["DBUS_COOKIE_SHA1"], keyring=lambda: Keyring(str(ours)))
    seen: list[Auth] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        thread = threading.Thread(target=serve_once, args=(server, offer, seen))
        thread.start()
        address = f"tcp:host=127.0.0.1,port={server.getsockname()[1]},family=ipv4"
        homes = {"HOME": str(theirs), "DBUS_TEST_HOMEDIR": str(theirs)}
        subprocess.run(
            [word.format(address) for word in words],
            env={**os.environ, **environ, **homes},
            capture_output=True,
            check=False,
            timeout=50,
        )
        thread.join(30)
    assert len(seen) == 1
    assert seen[0].done is same_keyring
    assert seen[0].identity == (os.geteuid() if same_keyring else None)
