"""Runs in the machine: the checks that were asked for, a line of JSON for each, and the end.

The file `plan` has a line for each round: its name, and the module whose `check_` functions are
called, in the order in which they are written.

Invariant: a line is written for each check that was begun, and the machine is shut down in any
case, by the way that a user has for that; what hangs then is ended by whoever started the machine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = "/dev/ttyS1"


def main() -> None:
    sys.path.insert(0, str(HERE))
    with open(OUT, "w", encoding="ascii") as out:
        os.system(f"stty -F {OUT} raw -echo")
        try:
            for line in (HERE / "plan").read_text().splitlines():
                title, name = line.split()
                one_round(out, title, importlib.import_module(name))
        finally:
            print(json.dumps({"end": True}), file=out, flush=True)
    os.system("systemctl poweroff")


def one_round(out: object, title: str, module: object) -> None:
    for name, check in list(vars(module).items()):
        if not name.startswith("check_"):
            continue
        began = time.monotonic()
        try:
            holds, seen = True, check()
        except Exception:
            holds, seen = False, traceback.format_exc()
        line = {"round": title, "check": name.removeprefix("check_"), "holds": holds, "seen": seen}
        line["seconds"] = round(time.monotonic() - began, 1)
        print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
