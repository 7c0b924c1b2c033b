"""Commands for a tree that becomes a machine, and in it.

Invariant: what fails ends the program, with what was said; what is mounted is mounted in a
namespace of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(*words: str | Path) -> str:
    """What a command says, which must not fail."""
    done = subprocess.run(
        words, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nimage.py: failed: {' '.join(map(str, words))}")
    return done.stdout


def inside(tree: Path, *words: str) -> str:
    """What a command in the tree says, which has a /proc meanwhile."""
    mount = 'mount -t proc proc "$1/proc" && exec chroot "$@"'
    clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
    clean += ["DEBIAN_FRONTEND=noninteractive", *proxies()]
    return run("unshare", "--mount", *clean, "sh", "-c", mount, "sh", str(tree), *words)


def proxies() -> list[str]:
    return [f"{name}={value}" for name, value in os.environ.items() if name.endswith("_proxy")]
