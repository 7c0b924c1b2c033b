"""Run: `make fuzz`. Feeds each target what libFuzzer makes of its corpus, guided by coverage.

Invariant: a target's run ends after its time, whatever it found; what it found stays in a file, and
the exit status says so. With `--pack`, what covers something that nothing smaller covers becomes
the corpus in `corpus/`. Two engines: `c`, the compiled modules with address and undefined-behaviour
sanitizers, and `python`, plain Python all through. Both are atheris, see docs/fuzzing.md.

    python -m fuzz.run --engine c --time 900 --work build/fuzz [TARGET...]
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_STAT = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
_COVER = re.compile(r"cov: (\d+) ft: (\d+)")


def child(name: str, words: list[str]) -> None:
    """In a process of its own: libFuzzer, until it is done or has found something."""
    import atheris

    with atheris.instrument_imports(include=["jitney"]):
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    mend = target.mend

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        changed: bytes = atheris.Mutate(data, longest)
        return changed if mend is None or seed & 1 else mend(changed)

    more = {} if mend is None else {"custom_mutator": mutated}
    # A merge starts this again by its first word, in a shell.
    again = shlex.join([sys.executable, "-m", "fuzz.run", "--child", name])
    atheris.Setup([again, *words], target.run, **more)
    atheris.Fuzz()


def environment(engine: str, tree: str) -> dict[str, str]:
    env = {**os.environ, "PYTHONPATH": f"{tree}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    if engine == "c":
        spec = find_spec("atheris")
        assert spec is not None
        assert spec.origin is not None
        env["LD_PRELOAD"] = str(Path(spec.origin).parents[1] / "asan_with_fuzzer.so")
        # Python lets go of little when it ends. Its own allocator hides what is freed from asan.
        env["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1:handle_segv=1"
        env["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
        env["PYTHONMALLOC"] = "malloc"
    return env


PACKED = 16_000
"""Bytes a target that are kept in the tree, those that cover most."""


class Run:
    """One target under one engine."""

    def __init__(self, name: str, engine: str, tree: str, work: Path) -> None:
        self.name = name
        self.engine = engine
        self.env = environment(engine, tree)
        self.corpus = work / "corpus" / name
        self.found = work / "found"
        self.log = work / "logs" / f"{name}.{engine}.log"
        self.executions = self.findings = 0
        self.coverage = ""
        for folder in (self.corpus, self.found, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self.words = work / "words" / name
        self.words.parent.mkdir(exist_ok=True)

    def prepare(self) -> int:
        """Lays out corpus and words; the longest input."""
        from fuzz import corpora
        from fuzz.targets import TARGETS

        target = TARGETS[self.name]
        corpora.unpack(self.name, self.corpus)
        lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in target.words]
        self.words.write_text("\n".join(lines) + "\n")
        return target.longest

    def go(self, seconds: int, longest: int) -> None:
        deadline = time.monotonic() + seconds
        while (left := int(deadline - time.monotonic())) > 0 and self.findings < 20:
            command = [
                sys.executable, "-m", "fuzz.run", "--child", self.name, str(self.corpus),
                f"-max_total_time={left}", f"-max_len={longest}", f"-dict={self.words}",
                f"-artifact_prefix={self.found}/{self.name}-", "-print_final_stats=1",
                "-timeout=60", "-rss_limit_mb=2048",
            ]  # fmt: skip
            with open(self.log, "a+b") as log:
                start = log.seek(0, os.SEEK_END)
                status = subprocess.run(command, env=self.env, stdout=log, stderr=log, check=False)
                log.seek(start)
                said = log.read().decode(errors="replace")
            done = _STAT.findall(said)
            self.executions += int(done[-1]) if done else 0
            covered = _COVER.findall(said)
            if covered:
                self.coverage = "/".join(covered[-1])
            if status.returncode:
                self.findings += 1
                print(f"  {self.name}: status {status.returncode}, see {self.log}", flush=True)
                if not done:
                    break

    def pack(self, longest: int) -> int:
        """Puts the inputs that are worth it into the tree; how many."""
        from fuzz import corpora

        with tempfile.TemporaryDirectory() as folder:
            few, many = Path(folder, "few"), Path(folder, "many")
            few.mkdir()
            # A run that goes on takes away what it has made smaller.
            shutil.copytree(self.corpus, many)
            command = [
                sys.executable, "-m", "fuzz.run", "--child", self.name, "-merge=1", str(few),
                str(many), f"-max_len={longest}", "-rss_limit_mb=4096",
            ]  # fmt: skip
            with open(self.log, "ab") as log:
                subprocess.run(command, env=self.env, stdout=log, stderr=log, check=True)
            assert any(few.iterdir()), f"nothing came out, see {self.log}"
            room = PACKED
            for path in sorted(few.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
                room -= path.stat().st_size
                if room < 0:
                    path.unlink()
            return corpora.pack(self.name, few)


def main(argv: list[str]) -> int:
    if argv[:1] == ["--child"]:
        child(argv[1], argv[2:])
        return 0
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--engine", choices=("c", "python"), required=True)
    parser.add_argument("--tree", required=True, help="the build, for PYTHONPATH")
    parser.add_argument("--work", type=Path, required=True, help="for corpora, logs and findings")
    parser.add_argument("--time", type=int, default=900, help="seconds a target")
    parser.add_argument("--pack", action="store_true", help="no run: pack what there is")
    parser.add_argument("targets", nargs="*")
    words = parser.parse_args(argv)
    env = environment(words.engine, words.tree)
    if os.environ.get("LD_PRELOAD") != env.get("LD_PRELOAD"):
        # What is instrumented can only be loaded with what it calls.
        os.execve(sys.executable, [sys.executable, "-m", "fuzz.run", *argv], env)
    from fuzz.targets import TARGETS

    unknown = set(words.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}: {', '.join(TARGETS)}")
    bad = 0
    for name in words.targets or TARGETS:
        run = Run(name, words.engine, words.tree, words.work)
        if words.pack:
            print(f"{name}: {run.pack(run.prepare())} inputs", flush=True)
            continue
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run.go(words.time, run.prepare())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        bad += run.findings
        line = (
            f"{words.engine} {name}: {run.executions} executions, {cpu:.0f} s of CPU time, "
            f"coverage {run.coverage}, {run.findings} findings"
        )
        print(line, flush=True)
        with open(words.work / "totals", "a") as totals:
            totals.write(line + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
