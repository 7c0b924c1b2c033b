"""Weaknesses that other brokers have had: for each of them there is a test that says so.

Invariant: `@pytest.mark.weakness(NAME)` stands at every test that would fail if we had it, and
every name is in this table. Numbers without "CVE" are issues and news entries of the projects.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TABLE = {
    "CVE-2014-3477": "a refusal while a service starts goes to the caller",
    "CVE-2014-3532": "descriptors nested too deep cost their receiver nothing",
    "CVE-2014-3533": "descriptors of messages back to back stay apart",
    "CVE-2014-3635": "odd numbers of descriptors",
    "CVE-2014-3636": "more descriptors than may be in a message",
    "CVE-2014-7824": "a process with few descriptors",
    "CVE-2014-3637": "descriptors without a message do not stay",
    "CVE-2014-3638": "ten thousand calls without a reply cost no more each than ten",
    "CVE-2014-3639": "connections that never authenticate keep nobody out",
    "CVE-2014-8148": "a policy too wide does not open privileged methods",
    "CVE-2015-0245": "not everybody may say that an activation failed",
    "CVE-2019-12749": "no links on the way to the cookies",
    "CVE-2020-12049": "descriptors that the kernel cut off do not leak",
    "CVE-2020-35512": "two names of one user",
    "CVE-2022-42010": "brackets in signatures nest",
    "CVE-2022-42011": "arrays hold whole elements",
    "CVE-2022-42012": "descriptors in messages of foreign byte order",
    "dbus#421": "junk before and during authentication",
    "CVE-2023-34969": "a refused reply of the bus while somebody monitors",
    "dbus#343": "a reload when a user has vanished",
    "dbus#481": "two hundred watched directories",
    "CVE-2022-31212": "quotes in Exec lines",
    "CVE-2022-31213": "empty and unknown elements",
    "dbus-broker NEWS 19": "what is charged is what is there",
    "dbus-broker NEWS 22": "descriptors that a security module took away",
    "dbus-broker#260": "the same monitor filter twice",
    "dbus-broker#354": "descriptors of the bus's own messages for a slow receiver",
    "dbus-broker#367": "arguments other than the first",
    "dbus-broker#427": "errors of the kernel that pass",
    "dbus-broker#435": "more connections than descriptors",
    "dbus-broker#457": "a line that the log does not take",
    "dbus-broker#462": "no descriptor, file or memory to accept a connection with",
}


def test_every_weakness_has_a_test() -> None:
    found: set[str] = set()
    for file in Path(__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "weakness"
            ):
                found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert found == TABLE.keys()


def test_the_mark_is_known(pytestconfig: pytest.Config) -> None:
    assert any(line.startswith("weakness(") for line in pytestconfig.getini("markers"))
