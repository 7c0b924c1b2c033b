"""The example of docs/client.md, as it is, on `jitney sockets` in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import kernel

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "kdbus_clock.py"
RUN = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"


@kernel.needs_memfd
def test_the_example_runs(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RUN, "sockets", str(tmp_path / "buses"), "--foreground"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        done = subprocess.run(
            [sys.executable, EXAMPLE, str(tmp_path / "buses")],
            check=False,
            capture_output=True,
            text=True,
            timeout=40,
        )
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("not there yet: ")
    assert re.fullmatch(r"it is \d\d:\d\d", lines[1])
    assert lines[2] == "its history has 588890 bytes"
    assert re.fullmatch(r"connection \d+ says tick", lines[3])
    assert len(lines) == 4
