"""The `jitney` command finds its subcommands and says what there are."""

from __future__ import annotations

import pytest

from jitney.compat import command


def test_help_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command.SUBCOMMANDS)


@pytest.mark.parametrize("words", [[], ["nonsense"]])
def test_what_it_does_not_know(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(words) == 2
    assert "usage: jitney" in capsys.readouterr().err


@pytest.mark.parametrize("name", command.SUBCOMMANDS)
def test_each_can_be_asked_for_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out
