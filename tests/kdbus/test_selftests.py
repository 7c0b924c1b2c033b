"""kdbus's own selftests over FUSE and with the shim; see `selftests.py` beside this."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_file = Path(__file__).with_name("selftests.py")
_spec = importlib.util.spec_from_file_location("kdbus_selftests", _file)
assert _spec is not None
assert _spec.loader is not None
selftests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(selftests)

pytestmark = pytest.mark.timeout(900)


def needs(front: str) -> pytest.MarkDecorator:
    why = selftests.why_not(front)
    return pytest.mark.skipif(bool(why), reason=f"kdbus's selftests: {why}")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built: Path = selftests.build(tmp_path_factory.mktemp("kdbus-source") / "source")
    return built


def run(program: Path, *words: str, before: tuple[str, ...] = ()) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = (*before, sys.executable, str(_file), "--program", str(program), "--tries=3", *words)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def as_a_user(program: Path) -> tuple[str, ...]:
    """Words before a command; the program can be reached then."""
    for folder in (program, *program.parents):
        if not os.stat(folder).st_mode & 0o001:
            os.chmod(folder, os.stat(folder).st_mode | 0o055)
    return ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")


@needs("fuse")
@pytest.mark.skipif(os.geteuid() != 0, reason="as root only")
@pytest.mark.parametrize("pool", ["store", "passthrough"])
def test_as_root(program: Path, pool: str) -> None:
    run(program, "--pool", pool, "--benchmarks")


@needs("shim")
def test_with_the_shim(program: Path) -> None:
    run(program, "--front", "shim", "--benchmarks")


@needs("shim")
@pytest.mark.skipif(os.geteuid() != 0, reason="is another user only as root")
def test_with_the_shim_as_a_user(program: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv(1)")
    run(program, "--front", "shim", before=as_a_user(program))


@needs("fuse")
def test_as_a_user(program: Path) -> None:
    """In a user namespace of its own, without any right outside of it."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1)")
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv(1)")
        before = as_a_user(program)
    run(program, before=before)
