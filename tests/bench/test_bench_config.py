"""The configuration: what is asked for is in it, and the brokers that read it agree."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from jitney.bench.config import LIMITS, Config


def roots(config: Config) -> list[ET.Element]:
    return [ET.fromstring(text) for text in config.files(Path("/f")).values()]


@pytest.mark.parametrize("rules", [0, 1, 7, 8, 1000, 10001])
def test_so_many_rules_more(rules: int) -> None:
    counts = [
        sum(len(root.findall("policy/*")) for root in roots(Config(number)))
        for number in (0, rules)
    ]
    assert counts[1] - counts[0] == rules


def test_no_file_is_too_large_for_dbus_daemon() -> None:
    assert max(map(len, Config(rules=40000).files(Path("/f")).values())) < 2**20


def test_a_limit_goes_before_the_usual_one() -> None:
    (root,) = roots(Config(limits={"max_outgoing_bytes": 4096}))
    limits = {node.get("name"): node.text for node in root.findall("limit")}
    assert limits["max_outgoing_bytes"] == "4096"
    assert limits.keys() == LIMITS.keys()


@pytest.mark.parametrize("name", ["max_outgoing_bytes", "max_outgoing_unix_fds"])
def test_products_that_dbus_broker_cuts_to_32_bits_stay_large(name: str) -> None:
    assert LIMITS[name] * LIMITS["max_connections_per_user"] % 2**32 > 2**31


def test_jitney_knows_every_limit_and_rule(tmp_path: Path) -> None:
    from jitney.compat.config import load

    config = load(str(Config(rules=100).write(tmp_path)))
    for name, value in LIMITS.items():
        assert config.limit_values[name] == value
