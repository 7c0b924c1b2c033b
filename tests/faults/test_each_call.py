"""Each system call that the bus makes fails, at each place where it makes it.

Which place is found by counting: the n-th call of a kind fails while clients do all that they do,
for n = 0, 1, 2 ... until they are through without having had n of them. What the call says goes
through the list in turn; with JITNEY_FAULTS_ALL in the environment each place has all of the list.
Reading a configuration makes thousands of calls: some are taken, and eight times as many then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import buses
import faultlayer
import faulttraffic
import pytest
from faultlayer import ANY, CALLS, Plan

from jitney.compat import ways

pytestmark = pytest.mark.skipif(
    isinstance(faultlayer.library(), str), reason=str(faultlayer.library())
)
ALL = bool(os.environ.get("JITNEY_FAULTS_ALL"))


@pytest.fixture
def plan() -> Iterator[Plan]:
    made = Plan()
    yield made
    made.close()


def sweep(
    plan: Plan, call: str, traffic: Callable[[str], None], bus: buses.Daemon, most: int = 1 << 30
) -> int:
    """How many places there were. Of more than `most`, as many are taken that lie evenly apart."""
    codes = CALLS[call]
    with faulttraffic.bystander(bus) as bystander:
        traffic(bus.address)
        with plan.armed({call: codes}, first=ANY):
            traffic(bus.address)
        places = plan.seen().get(call, 0)
        bystander.check()
        step = max(1, places // (most * 8 if ALL else most))
        n = done = 0
        while True:
            for code in codes if ALL else (codes[done % len(codes)],):
                try:
                    with plan.armed({call: (code,)}, first=n, length=1 + n % 23):
                        traffic(bus.address)
                    bystander.check()
                except BaseException as error:
                    error.add_note(f"{call} number {n} was told {code}")
                    raise
            if not plan.hit():
                return n
            n += step
            done += 1


TRAFFIC = ("recvmsg", "send", "sendmsg", "accept4", "getsockopt", "setsockopt", "close")
TRAFFIC += (*(("epoll_ctl", "epoll_wait") if ways.LINUX else ("poll",)), "alloc")
# Descriptors are passed on unix sockets alone, so that recv(2) is for others.
FILES = ("open", "fstat", "stat", "opendir", "readdir", "read", "write", "pipe2", "fork", "waitpid")
FILES += ("epoll_ctl", "inotify_add_watch", "ioctl", "kill")
SERVICES = (
    "fork",
    "pipe2",
    "read",
    "write",
    "pidfd_open",
    "waitpid",
    "waitid",
    "socket",
    "connect",
)
SERVICES += ("dup", "fcntl", "epoll_ctl", "open")


@pytest.mark.parametrize("call", TRAFFIC)
def test_traffic(plan: Plan, call: str) -> None:
    """At least one place for each, or this test shows nothing."""
    with faultlayer.running(plan) as bus:
        assert sweep(plan, call, faulttraffic.ride, bus) > 0 or call == "alloc"


@pytest.mark.parametrize("call", FILES)
def test_reload(plan: Plan, call: str) -> None:
    """A configuration is read in a child, which may fail; then the bus has the one before."""
    with faultlayer.running(plan) as bus:
        sweep(plan, call, faulttraffic.reload, bus, 3)


@pytest.mark.parametrize("call", SERVICES)
def test_start(plan: Plan, call: str) -> None:
    """A service that cannot be started, or comes after all: its callers are told."""
    with faultlayer.running(plan, extra=faulttraffic.QUICK) as bus:
        faulttraffic.write_services(bus)
        sweep(plan, call, faulttraffic.start, bus, 4)
