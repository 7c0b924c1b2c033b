"""Being a daemon: each step on its own, in processes made for it where it needs one."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import kernel
import pytest
from waiting import until

from jitney.compat import capabilities, errors, process
from jitney.compat.errors import DBusError


def script(code: str, *args: object, shell: str = "", **options: object) -> str:
    """Run code with `from jitney.compat.process import *` before it; what it prints.

    `shell` may close descriptors of it.
    """
    head = "import os, signal, sys\nfrom jitney.compat import process\n"
    command = ["sh", "-c", f'exec "$0" "$@" {shell}', sys.executable, "-c", head + code]
    done = subprocess.run(
        [*command, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def failure(call: Callable[[], object]) -> DBusError:
    with pytest.raises(DBusError) as caught:
        call()
    return caught.value


FDS = """
process.ensure_standard_fds(null_in=True, null_out=sys.argv[1] == "all")
with open(sys.argv[2], "w") as file:
    for fd in range(3):
        print(os.readlink(f"/proc/self/fd/{fd}"), os.get_inheritable(fd), file=file)
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_fds(tmp_path: Path, closed: str) -> None:
    script(FDS, "in", tmp_path / "out", shell=closed)
    rows = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    null = [name == "/dev/null" for name, _ in rows]
    assert null == [True, ">&-" in closed.replace("2>&-", ""), "2>&-" in closed]
    assert all(inherited == "True" for _, inherited in rows)


def test_standard_fds_forced(tmp_path: Path) -> None:
    script(FDS, "all", tmp_path / "out")
    names = [line.split()[0] for line in (tmp_path / "out").read_text().splitlines()]
    assert names[:2] == ["/dev/null"] * 2
    assert names[2] != "/dev/null"


def test_close_on_exec() -> None:
    code = """
ends = os.pipe()
os.set_inheritable(ends[0], True)
process.close_on_exec()
print(os.get_inheritable(ends[0]), [os.get_inheritable(fd) for fd in range(3)])
"""
    assert script(code) == "False [True, True, True]\n"


def test_print_line() -> None:
    inward, outward = os.pipe()
    process.print_line(outward, "unix:path=/x")
    process.close_printed(outward)
    assert os.read(inward, 100) == b"unix:path=/x\n"
    assert os.read(inward, 100) == b""
    os.close(inward)
    process.close_printed(2)
    os.fstat(2)
    error = failure(lambda: process.print_line(outward, "x"))
    assert error.text == "Writing to pipe: Bad file descriptor"
    process.close_printed(outward)


def test_pidfile(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    process.check_pidfile(path)
    process.write_pidfile(path, 4711)
    assert Path(path).read_text() == "4711\n"
    assert Path(path).stat().st_mode & 0o133 == 0
    assert failure(lambda: process.check_pidfile(path)).text == (
        f'The pid file "{path}" exists, if the message bus is not running, remove this file'
    )
    error = failure(lambda: process.write_pidfile(path, 1))
    assert (error.name, error.text) == (errors.FILE_EXISTS, f'Failed to open "{path}": File exists')
    assert Path(path).read_text() == "4711\n"
    process.remove_pidfile(path)
    process.remove_pidfile(path)
    assert not os.path.exists(path)
    error = failure(lambda: process.write_pidfile(str(tmp_path / "no" / "pid"), 1))
    assert error.name == errors.FILE_NOT_FOUND


FORK = """
import resource, time
folder = sys.argv[1]
os.umask(0o077)
inward, outward = os.pipe()
def child():
    pidfile = folder + "/pid" if "pidfile" in sys.argv else None
    try:
        fork = process.daemonise(
            pidfile=pidfile, print_pid=outward, keep_umask="keep" in sys.argv)
    except process.DBusError as error:
        print(error.text, flush=True)
        os._exit(3)
    if "fail" in sys.argv:
        os._exit(7)
    if "killed" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in sys.argv:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.3)
    with open(folder + "/report.new", "w") as file:
        print(os.getpid(), os.getsid(0), os.getcwd(), oct(os.umask(0)), file=file)
        fork.ready()
        for fd in range(3):
            print(os.readlink(f"/proc/self/fd/{fd}"), file=file)
    os.rename(folder + "/report.new", folder + "/report")
    os._exit(0)
if "full" in sys.argv:
    os.close(outward)
parent = os.fork()
if not parent:
    child()
start = time.monotonic()
_, status = os.waitpid(parent, 0)
print(os.waitstatus_to_exitcode(status), time.monotonic() - start > 0.25)
os.set_blocking(inward, False)
try:
    print(os.read(inward, 100).decode(), end="")
except BlockingIOError:
    pass
"""


def report(folder: Path) -> list[str]:
    """What the child wrote when it was done."""
    until((folder / "report").exists, "it is written")
    return (folder / "report").read_text().split()


def test_fork(tmp_path: Path) -> None:
    status, waited, pid = script(FORK, tmp_path, "pidfile").split()
    assert (status, waited) == ("0", "True")  # the parent waited until we were ready
    child, session, folder, umask, *fds = report(tmp_path)
    assert child == pid == session
    assert (tmp_path / "pid").read_text() == pid + "\n"
    assert (folder, umask) == ("/", "0o22")
    assert fds == ["/dev/null"] * 3


def test_fork_keeps_the_umask_and_the_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_DEBUG_OUTPUT", "1")
    script(FORK, tmp_path, "keep")
    *_, umask, stdin, stdout, stderr = report(tmp_path)
    assert umask == "0o77"
    assert (stdin, stdout) == ("/dev/null", "/dev/null")
    assert stderr != "/dev/null"
    assert not (tmp_path / "pid").exists()


def test_fork_that_fails_has_its_childs_status(tmp_path: Path) -> None:
    assert script(FORK, tmp_path, "fail") == "7 False\n"


def test_fork_whose_child_is_killed(tmp_path: Path) -> None:
    out = script(FORK, tmp_path, "killed", "pidfile").splitlines()
    assert out[0] == "The daemon was killed by SIGKILL at its start"
    assert out[1].startswith("3 ")
    assert not (tmp_path / "pid").exists()


def test_fork_with_a_pidfile_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1\n")
    out = script(FORK, tmp_path, "pidfile", "hang").splitlines()
    assert out[0] == f'Failed to open "{tmp_path}/pid": File exists'
    assert out[1].startswith("3 ")
    assert (tmp_path / "pid").read_text() == "1\n"


def test_fork_with_nowhere_to_print_the_pid(tmp_path: Path) -> None:
    out = script(FORK, tmp_path, "pidfile", "full").splitlines()
    assert out[0] == "Writing to pipe: Bad file descriptor"
    assert not (tmp_path / "pid").exists()


class Limits:
    """A kernel that allows a hard limit of `ceiling` to those who may raise it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: tuple[int, int], ceiling: int) -> None:
        self.now = now
        self.ceiling = ceiling
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.now)
        monkeypatch.setattr(resource, "setrlimit", self.set)

    def set(self, _: int, limit: tuple[int, int]) -> None:
        if limit[1] > max(self.now[1], self.ceiling):
            raise ValueError("not allowed to raise maximum limit")
        self.now = limit


@pytest.mark.parametrize(
    ("uid", "before", "ceiling", "after", "warned"),
    [
        (0, (1024, 4096), 10**6, (65536, 65536), False),
        (0, (1024, 524288), 10**6, (524288, 524288), False),
        (0, (65536, 65536), 0, (65536, 65536), False),
        (0, (1024, 20000), 0, (20000, 20000), True),  # no CAP_SYS_RESOURCE
        (0, (20000, 20000), 0, (20000, 20000), True),
        (0, (1024, resource.RLIM_INFINITY), 0, (resource.RLIM_INFINITY,) * 2, False),
        (1000, (1024, 4096), 0, (4096, 4096), False),
        (1000, (4096, 4096), 0, (4096, 4096), False),
    ],
)
def test_fd_limit(
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    before: tuple[int, int],
    ceiling: int,
    after: tuple[int, int],
    warned: bool,
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    limits = Limits(monkeypatch, before, ceiling)
    warnings: list[str] = []
    assert process.raise_fd_limit(warnings.append) == before
    assert limits.now == after
    text = "org.freedesktop.DBus.Error.AccessDenied: Failed to set fd limit to 65536: "
    assert warnings == ([text + "Operation not permitted"] if warned else [])


def test_find_user() -> None:
    root = pwd.getpwnam("root")
    assert process.find_user("root") == (root.pw_uid, root.pw_gid) == process.find_user("0")
    assert process.find_user("no such user") is None
    assert process.find_user("99999999999999999999") is None
    assert process.find_user("3999999999") is None


@pytest.mark.parametrize("name", ["0", "00", "0x0", "+0", " 0", "\t\v0"])
def test_find_user_by_a_number_as_strtoul_reads_it(name: str) -> None:
    root = pwd.getpwnam("root")
    assert process.find_user(name) == (root.pw_uid, root.pw_gid)


def test_find_user_by_a_number_of_another_base() -> None:
    for entry in pwd.getpwall():
        for text in (f"{entry.pw_uid:#x}", f"0{entry.pw_uid:o}"):
            assert process.find_user(text) == process.find_user(str(entry.pw_uid))


@pytest.mark.parametrize(
    "name", ["\u0660", "\uff10", "\u00b2", "08", "0x", "0b0", "0o0", "0 ", "1_0", "-1", "", "0\n"]
)
def test_what_is_no_number_is_a_name(name: str) -> None:
    assert process.find_user(name) is None


def test_change_user_to_nobody_at_all() -> None:
    error = failure(lambda: process.change_user("no such user"))
    assert error.text == "User 'no such user' does not appear to exist?"


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@as_root
def test_change_user() -> None:
    code = """
os.setgroups([1, 2, 3])
process.change_user("nobody")
print(os.getresuid(), os.getresgid(), os.getgroups())
process.change_user("root")
print(os.getresuid())
"""
    entry = pwd.getpwnam("nobody")
    uids, gids = (entry.pw_uid,) * 3, (entry.pw_gid,) * 3
    assert script(code) == f"{uids} {gids} []\n{uids}\n"


def without_capabilities(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Only note what would be done to them: it is this very process that they belong to. All calls
    succeed, and CAP_AUDIT_WRITE is among what is permitted."""
    done: list[tuple[str, object]] = []
    monkeypatch.setattr(capabilities, "permitted", lambda: 0xFFFFFFFFFF)
    monkeypatch.setattr(capabilities, "clear_ambient", lambda: done.append(("ambient", 0)))
    monkeypatch.setattr(capabilities, "limit_to", lambda these: done.append(("limit", these)))
    monkeypatch.setattr(capabilities, "keep_across_setuid", lambda on: done.append(("keep", on)))
    return done


# Prints what the process may do: effective, permitted, inheritable and ambient capabilities, and
# whether the next setuid() would keep them.
CAPABILITIES = """
from jitney.compat import capabilities
def show():
    lines = open("/proc/self/status").read().splitlines()
    facts = dict(line.split(":\t") for line in lines)
    print(*(int(facts["Cap" + name], 16) >> 29 & 1 for name in ("Eff", "Prm", "Inh", "Amb")),
          int(facts["CapPrm"], 16) & ~capabilities.AUDIT_WRITE, capabilities._libc.prctl(7))
"""

may_audit = pytest.mark.skipif(
    not capabilities.permitted() & capabilities.AUDIT_WRITE,
    reason="this container may not write to the audit log",
)


@as_root
@may_audit
def test_one_capability_is_kept() -> None:
    code = """
process.change_user("nobody")
show()
process.change_user("nobody")
show()
"""
    assert script(CAPABILITIES + code) == "1 1 0 0 0 0\n" * 2


@as_root
@may_audit
@kernel.needs_ambient
def test_capability_from_a_service_manager() -> None:
    """Started with User= and AmbientCapabilities=: it is ours, and not our children's."""
    entry = pwd.getpwnam("nobody")
    command = [
        "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups",
        "--inh-caps=+audit_write", "--ambient-caps=+audit_write",
        sys.executable, "-c",
        "from jitney.compat import process\n" + CAPABILITIES
        + "show()\nprocess.change_user('nobody')\nshow()",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "1 1 1 1 0 0\n1 1 1 0 0 0\n"


@as_root
@pytest.mark.parametrize(
    "before",
    [
        "capabilities.limit_to(capabilities.permitted() & ~capabilities.AUDIT_WRITE)",
        # A C library without them, a sandbox that forbids it.
        "capabilities._libc = type('Libc', (), {'prctl': capabilities._libc.prctl})()",
        "capabilities.keep_across_setuid = capabilities._check",
    ],
)
def test_no_capability_to_keep(before: str) -> None:
    code = f"""
{before}
process.change_user("nobody")
show()
print(os.getresuid() == os.getresgid(), os.getgroups())
"""
    assert script(CAPABILITIES + code) == "0 0 0 0 0 0\nTrue []\n"


def test_order_of_giving_up(monkeypatch: pytest.MonkeyPatch) -> None:
    done = without_capabilities(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda value, name=name: done.append((name, value)))
    entry = pwd.getpwnam("nobody")
    process.change_user("nobody")
    ids = capabilities.SETUID | capabilities.SETGID
    assert done == [
        ("ambient", 0),
        ("limit", capabilities.AUDIT_WRITE | ids),
        ("keep", True),
        ("setgroups", []),
        ("setgid", entry.pw_gid),
        ("setuid", entry.pw_uid),
        ("limit", capabilities.AUDIT_WRITE),
        ("keep", False),
    ]


@pytest.mark.parametrize("step", ["limit", "keep"])
def test_what_cannot_be_given_up(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A bus that would stay more than it should be does not run."""
    without_capabilities(monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda _: None)

    def limit(these: int) -> None:
        if step == "limit" and these == capabilities.AUDIT_WRITE:
            raise OSError(errno.EPERM, "")

    def keep(on: bool) -> None:
        if step == "keep" and not on:
            raise OSError(errno.EPERM, "")

    monkeypatch.setattr(capabilities, "limit_to", limit)
    monkeypatch.setattr(capabilities, "keep_across_setuid", keep)
    text = {"limit": "Failed to drop capabilities", "keep": "Failed to unset keep-capabilities"}
    error = failure(lambda: process.change_user("nobody"))
    assert error.text == f"{text[step]}: Operation not permitted"


@as_root
def test_own_proc_files() -> None:
    code = """
from jitney.compat import capabilities
process.change_user("nobody")
print(os.access("/proc/self/oom_score_adj", os.W_OK))
capabilities.own_proc_files()
print(os.access("/proc/self/oom_score_adj", os.W_OK))
"""
    assert script(code) == "False\nTrue\n"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("setgroups", "Failed to drop supplementary groups"),
        ("setgid", "Failed to set GID to {gid}"),
        ("setuid", "Failed to set UID to {uid}"),
    ],
)
def test_change_user_refused(monkeypatch: pytest.MonkeyPatch, call: str, text: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "")

    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, refuse if name == call else lambda *_: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    without_capabilities(monkeypatch)
    entry = pwd.getpwnam("nobody")
    error = failure(lambda: process.change_user("nobody"))
    expected = text.format(uid=entry.pw_uid, gid=entry.pw_gid)
    assert error.name == errors.ACCESS_DENIED
    assert error.text == expected + ": Operation not permitted"


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"\0{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        process.notify("READY=1")
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", ["", "relative", "/nonexistent/socket", "@jitney-nobody"])
def test_notify_nobody(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", value)
    process.notify("READY=1")
