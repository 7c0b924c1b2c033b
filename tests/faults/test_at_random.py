"""Many calls fail at once, drawn by a seed, so that failures meet the handling of others."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import faultlayer
import faulttraffic
import pytest
from faultlayer import CALLS, Plan

pytestmark = pytest.mark.skipif(
    isinstance(faultlayer.library(), str), reason=str(faultlayer.library())
)
SEEDS = range(int(os.environ.get("JITNEY_FAULTS_SEEDS", "3")))
TRAFFIC = (faulttraffic.ride,) * 8 + (faulttraffic.reload, faulttraffic.start)
# What the kernel never says of a descriptor that is no file.
NEVER = {"close"}


@pytest.fixture
def plan() -> Iterator[Plan]:
    made = Plan()
    yield made
    made.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_many_at_once(plan: Plan, seed: int) -> None:
    dice = random.Random(seed)
    faults = {call: codes for call, codes in CALLS.items() if call not in NEVER}
    with faultlayer.running(plan, extra=faulttraffic.QUICK) as bus:
        faulttraffic.write_services(bus)
        with faulttraffic.bystander(bus) as bystander:
            for _ in range(12):
                traffic = dice.choice(TRAFFIC)
                rate, length = dice.choice([20, 50, 200]), dice.randrange(1, 200)
                number = dice.getrandbits(32)
                with plan.armed(faults, rate=rate, seed=number, length=length):
                    traffic(bus.address)
                bystander.check()
