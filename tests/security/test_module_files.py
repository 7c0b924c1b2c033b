"""How the kernel's security modules are asked, byte for byte, and how records are written."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from pathlib import Path

import pytest

from jitney.compat.security import apparmorfs, audit, selinuxfs
from jitney.compat.security.apparmorfs import Answer, Confinement

# What dbus-daemon asks: libapparmor's command, label, NUL, class 32, the bus's type, and for each
# further word a NUL before it; one that is not there is empty.
QUERIES = [
    (apparmorfs.eavesdrop_query(b"/bin/a", b"system"), "6c6162656c002f62696e2f61002073797374656d"),
    (apparmorfs.eavesdrop_query(b"a", b""), "6c6162656c0061 00 20"),
    (
        apparmorfs.own_query(b"a//b", b"session", b"c.d"),
        "6c6162656c0061 2f2f62 00 2073657373696f6e 00 632e64",
    ),
    (
        apparmorfs.message_query(b"a", b"system", b":1.2", b"b", b"/p", b"i.j", b"M"),
        "6c6162656c00 61 00 20 73797374656d 00 3a312e32 00 62 00 2f70 00 692e6a 00 4d",
    ),
    (
        apparmorfs.message_query(b"a", b"system", b"c.d", None, None, None, None),
        "6c6162656c00 61 00 20 73797374656d 00 632e64 00 00 00 00",
    ),
]


@pytest.mark.parametrize(("query", "wanted"), QUERIES, ids=range(len(QUERIES)))
def test_queries(query: bytes, wanted: str) -> None:
    assert query == bytes.fromhex(wanted)


def answer(allow: int, deny: int, audited: int, quiet: int) -> bytes:
    return b"allow 0x%08x\ndeny 0x%08x\naudit 0x%08x\nquiet 0x%08x\n" % (
        allow, deny, audited, quiet,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "answered", "wanted"),
    [
        (2, answer(2, 0, 0, 0), Answer(True, False)),
        (2, answer(2, 0, 2, 0), Answer(True, True)),
        (2, answer(2, 0, 2, 2), Answer(True, False)),
        (2, answer(2, 2, 0, 0), Answer(False, True)),
        (2, answer(2, 2, 0, 2), Answer(False, False)),
        (2, answer(4, 0, 0, 0), Answer(False, True)),
        (6, answer(2, 0, 0, 0), Answer(False, True)),
        (64, answer(0xFFFFFFFF, 0, 0, 0), Answer(True, False)),
    ],
)
def test_answers(mask: int, answered: bytes, wanted: Answer) -> None:
    assert apparmorfs.parse_answer(mask, answered) == wanted


@pytest.mark.parametrize("answered", [b"", b"allow 0x2\n", b"nonsense"])
def test_no_answer(answered: bytes) -> None:
    with pytest.raises(OSError, match="Protocol error"):
        apparmorfs.parse_answer(2, answered)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"unconfined", Confinement(b"unconfined", None)),
        (b"/usr/bin/a (enforce)", Confinement(b"/usr/bin/a", b"enforce")),
        (b"a (b) (complain)", Confinement(b"a (b)", b"complain")),
        (b"snap.x (unconfined)", Confinement(b"snap.x", b"unconfined")),
        (b"a//&b (mixed)", Confinement(b"a//&b", b"mixed")),
        (b"a", None),
        (b" (enforce)", None),
        (b"", None),
    ],
)
def test_labels(text: bytes, wanted: Confinement | None) -> None:
    found = apparmorfs.parse_confinement(text)
    assert found == wanted


def test_confinement_counts() -> None:
    assert Confinement(b"unconfined", None).unconfined
    assert Confinement(b"a", b"unconfined").unconfined
    assert not Confinement(b"unconfined", b"enforce").unconfined
    assert Confinement(b"a", b"complain").complains


# SELinux's


@pytest.mark.parametrize(
    ("answered", "wanted"),
    [
        (b"2 ffffffff 0 ffffffff 7 0\0", selinuxfs.Vector(2, 0, 0xFFFFFFFF, False)),
        (b"3 ffffffff 1 fffffffe 7 1", selinuxfs.Vector(3, 1, 0xFFFFFFFE, True)),
        (b"3 ffffffff 1 fffffffe 7\n", selinuxfs.Vector(3, 1, 0xFFFFFFFE, False)),
    ],
)
def test_vectors(answered: bytes, wanted: selinuxfs.Vector) -> None:
    assert selinuxfs.parse_vector(answered) == wanted


@pytest.mark.parametrize("answered", [b"", b"x y z 0", b"1 2"])
def test_no_vector(answered: bytes) -> None:
    with pytest.raises(OSError, match="Protocol error"):
        selinuxfs.parse_vector(answered)


def policy_files(folder: Path) -> selinuxfs.SELinuxFS:
    """The files of a kernel with a policy, but for those that are asked."""
    perms = folder / "class" / "dbus" / "perms"
    perms.mkdir(parents=True)
    (folder / "class" / "dbus" / "index").write_text("52")
    (perms / "acquire_svc").write_text("1")
    (perms / "send_msg").write_text("2")
    (folder / "enforce").write_text("1")
    (folder / "deny_unknown").write_text("0")
    return selinuxfs.SELinuxFS(str(folder))


def test_classes_and_permissions(tmp_path: Path) -> None:
    kernel = policy_files(tmp_path)
    assert kernel.permissions("dbus") == (52, {"acquire_svc": 1, "send_msg": 2})
    with pytest.raises(FileNotFoundError):
        kernel.permissions("other")


def test_status_with_and_without_a_page(tmp_path: Path) -> None:
    kernel = policy_files(tmp_path)
    kernel.map()
    assert kernel.mapped is None
    assert kernel.status() == selinuxfs.Status(True, False, 0)
    page = tmp_path / "status"
    page.write_bytes(struct.pack("=5I", 1, 4, 0, 9, 1).ljust(4096, b"\0"))
    kernel.map()
    assert kernel.mapped is not None
    assert bytes(kernel.mapped) == struct.pack("=I", 4)
    assert kernel.status() == selinuxfs.Status(False, True, 9)
    # It is the file's memory, not a copy of it.
    with page.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack("=2I", 6, 1))
    assert bytes(kernel.mapped) == struct.pack("=I", 6)
    assert kernel.status() == selinuxfs.Status(True, True, 9)


def test_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one descriptor, written in one piece and read from the same."""
    ours, theirs = socket.socketpair()
    asked: list[bytes] = []

    def kernel() -> None:
        asked.append(theirs.recv(4096))
        theirs.sendall(b"2 ffffffff 0 ffffffff 1 0")

    thread = threading.Thread(target=kernel)
    thread.start()
    opened: list[str] = []

    def open_(path: str, flags: int) -> int:
        opened.append(path)
        assert flags & os.O_RDWR
        return os.dup(ours.fileno())

    monkeypatch.setattr(os, "open", open_)
    try:
        found = selinuxfs.SELinuxFS("/s").compute(b"u:r:a_t:s0", b"u:r:b_t:s0", 52, 0x1F)
    finally:
        monkeypatch.undo()
        thread.join(10)
        ours.close()
        theirs.close()
    assert opened == ["/s/access"]
    assert asked == [b"u:r:a_t:s0 u:r:b_t:s0 52 1f"]
    assert found.allowed == 2


def test_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selinuxfs, "CONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(selinuxfs, "PLACES", (str(tmp_path),))
    policy_files(tmp_path)
    assert selinuxfs.find() is None
    (tmp_path / "config").write_text("SELINUX=enforcing\n")
    assert selinuxfs.find() is None
    (tmp_path / "access").write_text("")
    found = selinuxfs.find()
    assert found is not None
    assert found.place == str(tmp_path)
    monkeypatch.setattr(apparmorfs, "ENABLED", str(tmp_path / "enabled"))
    monkeypatch.setattr(apparmorfs, "PLACE", str(tmp_path))
    assert apparmorfs.find() is None
    (tmp_path / "enabled").write_text("Y\n")
    assert apparmorfs.find() is None
    (tmp_path / "features" / "dbus").mkdir(parents=True)
    (tmp_path / "features" / "dbus" / "mask").write_text("acquire send receive")
    assert apparmorfs.find() is not None
    (tmp_path / "enabled").write_text("N\n")
    assert apparmorfs.find() is None


def test_our_own_label(tmp_path: Path) -> None:
    (tmp_path / "current").write_bytes(b"u:r:bus_t:s0\0")
    files = (str(tmp_path / "none"), str(tmp_path / "current"))
    assert selinuxfs.own_attribute(files) == b"u:r:bus_t:s0"
    with pytest.raises(FileNotFoundError):
        selinuxfs.own_attribute(files[:1])


# The audit log


def test_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    data = audit.packet(audit.USER_AVC, 7, "avc:  denied")
    length, kind, flags, serial, pid = struct.unpack_from("=IHHII", data)
    assert (kind, flags, serial, pid) == (1107, 5, 7, 0)
    assert length <= len(data) < length + 4
    text = data[16:length]
    assert text.endswith(b"\0")
    program = os.readlink("/proc/self/exe")
    assert text[:-1].decode() == (
        f'avc:  denied exe="{program}" sauid={os.getuid()} hostname=? addr=? terminal=?'
    )
    assert len(audit.packet(audit.USER_AVC, 7, "x" * 100000)) < 9000


def test_the_kernels_answer() -> None:
    head = struct.Struct("=IHHII")
    assert audit.answer(head.pack(36, 2, 0, 1, 0) + struct.pack("=i", -errno.EPERM)) == errno.EPERM
    assert audit.answer(head.pack(36, 2, 0, 1, 0) + struct.pack("=i", 0)) == 0
    assert audit.answer(b"") == 0


def test_records_that_the_kernel_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(audit, "effective", lambda: 0)
    book = audit.Audit(logged.append, logged.append)
    book.record(audit.USER_AVC, "one")
    assert logged == ["one"]
    monkeypatch.setattr(audit, "effective", lambda: audit.AUDIT_WRITE)
    warned: list[str] = []
    book = audit.Audit(logged.append, warned.append)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Wire:
        """A netlink socket whose other end is ours."""

        def sendto(self, data: bytes, where: tuple[int, int]) -> None:
            assert where == (0, 0)
            ours.send(data)

        def recv(self, size: int) -> bytes:
            return ours.recv(size)

        def close(self) -> None:
            ours.close()

    book._socket = Wire()  # type: ignore[assignment]
    for code, taken in ((0, True), (-errno.EPERM, False)):
        theirs.send(struct.pack("=IHHIIi", 36, 2, 0, 1, 0, code))
        book.record(audit.USER_AVC, "two")
        assert b"two exe=" in theirs.recv(9000)
        assert ("two" in logged) is not taken
    # It is not asked again.
    book.record(audit.USER_AVC, "three")
    assert logged[-1] == "three"
    theirs.close()


def test_capabilities() -> None:
    with Path("/proc/self/status").open() as file:
        wanted = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    assert audit.effective() == int(wanted, 16)
