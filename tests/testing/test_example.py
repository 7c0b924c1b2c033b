"""The example in docs/testing.md does what it says there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import clock
import pytest

import jitney


def test_example() -> None:
    if shutil.which("gdbus") is None:
        pytest.skip("gdbus is not installed")
    folder = Path(clock.__file__).parent
    above = str(Path(jitney.__path__[0]).parent)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p",
            "jitney.testing.plugin", "-p", "pytest_asyncio.plugin", "-c", os.devnull,
            str(folder / "test_clock.py"),
        ],
        cwd=folder, capture_output=True, text=True, timeout=50, check=False,
        env={**os.environ, "PYTHONPATH": above, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert "5 passed" in done.stdout, done.stdout + done.stderr
