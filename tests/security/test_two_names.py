"""Two names in the user database for one uid: what is said of either holds for both."""

from __future__ import annotations

import pwd
from pathlib import Path

import configs
import pytest

from jitney.broker.policy import PolicySet
from jitney.compat.config import load

UID = 4711


@pytest.mark.weakness("CVE-2020-35512")
def test_rules_for_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        name: pwd.struct_passwd((name, "x", UID, UID, "", "/", "/bin/sh"))
        for name in ("first", "second")
    }
    monkeypatch.setattr(pwd, "getpwnam", entries.__getitem__)
    file = configs.write(
        tmp_path,
        """<policy context="default"/>
        <policy context="default"><allow own="*"/></policy>
        <policy user="first"><deny own="org.example.A"/></policy>
        <policy user="second"><deny own="org.example.B"/></policy>
        <policy user="first"><allow own="org.example.C"/></policy>""",
    )
    policies = PolicySet(load(str(file)).policy_spec())
    policy = policies.client(UID, [], False)
    for name, allowed in ((b"A", False), (b"B", False), (b"C", True), (b"D", True)):
        assert policy.may_own(b"org.example." + name) == allowed
    # Once more, after a reload: the same user, not one who was there before.
    again = PolicySet(load(str(file)).policy_spec()).client(UID, [], False)
    assert not again.may_own(b"org.example.A")
    assert again.number != policy.number
