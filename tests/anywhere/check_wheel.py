"""Whether a wheel is fit for others: `python tests/anywhere/check_wheel.py WHEEL`

Invariant: what is looked at is the file, and what pip makes of it in an environment of its own that
is gone afterwards; no tree of sources can be imported from there.

Fit is a compiled wheel for manylinux2014 that asks for no newer glibc, that pip installs, and whose
daemon answers a client. `make wheels` calls this.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from anywhere.elf import too_new  # noqa: E402

TAG = "manylinux2014"

# Behind a daemon's command line: it is started, asked and ended.
ASK = """
import subprocess, sys
import jitney.broker.routing as routing
from rawclient import RawClient
assert routing.__file__.endswith(".so"), routing.__file__
bus = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
try:
    with RawClient(bus.stdout.readline().strip()) as one, RawClient(bus.args[-1]) as two:
        name = one.hello()
        two.hello()
        two.message(destination=name.encode(), path=b"/o", interface=b"a.b", member=b"M")
        while (message := one.receive()).member != "M":
            pass
        assert message.sender == two.unique_name
finally:
    bus.terminate()
print(routing.__file__, "ended with", bus.wait(10))
"""


def main(wheel: Path) -> str:
    """What is wrong with it; "" if nothing is."""
    if TAG not in wheel.name:
        return f"its tag is not {TAG}'s"
    with tempfile.TemporaryDirectory(prefix="jitney-wheel-") as folder:
        files = Path(folder, "files")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(files)
        compiled = sorted(files.rglob("*.so"))
        if not compiled:
            return "nothing in it is compiled"
        for file in compiled:
            if wants := too_new(file):
                return f"{file.relative_to(files)} wants {', '.join(wants)}"
        place = Path(folder, "venv")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin" / "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", wheel.resolve()], check=True)
        address = f"unix:path={folder}/bus"
        done = subprocess.run(
            [place / "bin" / "python", "-c", ASK, place / "bin" / "jitney-daemon", "--session",
             "--nofork", "--print-address", "--address", address],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(HERE.parent)},
            cwd=folder, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            return "its daemon does not do what it should"
    print(f"{wheel.name}: {len(compiled)} compiled files")
    return ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: check_wheel.py WHEEL")
    if problem := main(Path(sys.argv[1])):
        sys.exit(f"{sys.argv[1]}: {problem}")
