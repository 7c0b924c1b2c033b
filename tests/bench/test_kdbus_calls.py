"""`jitney bench kdbus`: a short run over a classic bus and sockets; FUSE where it can be had."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("jitney.bench.rpc", reason="the load is compiled code")

from jitney.bench import kdbus


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rounds", "1", "--share", "0.01", "--only", "classic,native"]
    assert kdbus.main([*words, "--sizes", "64,65536,1048576"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("classic", "native"):
        rows = [line.split() for line in lines if line.startswith(name)]
        assert [" ".join(row[1:3]) for row in rows] == ["64 B", "64 KiB", "1 MiB"]
        assert all(float(row[3]) > 0 for row in rows)


@pytest.mark.skipif(
    not os.path.exists("/dev/fuse") or os.geteuid() != 0, reason="there is no /dev/fuse for us"
)
def test_over_fuse(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rounds", "1", "--share", "0.01", "--only", "fuse", "--sizes", "64,4096"]
    assert kdbus.main(words) == 0
    assert capsys.readouterr().out.count("fuse ") == 2


def test_what_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert kdbus.main(["--rounds", "1", "--only", "fuse", "--sizes", "64"]) == 0
    assert "there is no /dev/fuse here" in capsys.readouterr().err
