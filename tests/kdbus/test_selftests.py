"""kdbus's own selftests against `jitney mount`; see `selftests.py` beside this."""

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

pytestmark = [
    pytest.mark.skipif(
        bool(selftests.why_not()), reason=f"kdbus's selftests: {selftests.why_not()}"
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built: Path = selftests.build(tmp_path_factory.mktemp("kdbus-source") / "source")
    return built


def run(program: Path, *words: str, before: tuple[str, ...] = ()) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = (*before, sys.executable, str(_file), "--program", str(program), *words)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="as root only")
@pytest.mark.parametrize("pool", ["store", "passthrough"])
def test_as_root(program: Path, pool: str) -> None:
    run(program, "--pool", pool, "--benchmarks")


def test_as_a_user(program: Path) -> None:
    """In a user namespace of its own, without any right outside of it."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1)")
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv(1)")
        before = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
        for folder in (program, *program.parents):
            if not os.stat(folder).st_mode & 0o001:
                os.chmod(folder, os.stat(folder).st_mode | 0o055)
    run(program, before=before)
