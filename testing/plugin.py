"""The pytest plugin: a bus for each test, and its journal in the report of one that failed.

Invariant: loading it costs nothing and changes nothing; tests that ask for no fixture of it do not
notice that it is there.

Arguments of `Bus` come from the marker: @pytest.mark.jitney(policy=[Deny(own="com.example.X")]).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .bus import Bus
    from .child import Child

SHOWN = 50


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "jitney(**options): what the test's bus is to be like, see jitney.testing.Bus"
    )


@pytest.fixture(scope="session")
def jitney_child() -> Iterator[Child]:
    """The process in which the buses of all tests are."""
    from .child import Child

    with Child() as child:
        yield child


def _bus(request: pytest.FixtureRequest, child: Child, type: str) -> Bus:
    from .bus import Bus

    options: dict[str, Any] = {"type": type}
    for marker in reversed(list(request.node.iter_markers("jitney"))):
        options.update(marker.kwargs)
    return Bus(host=child, **options)


@pytest.fixture
def jitney_bus(request: pytest.FixtureRequest, jitney_child: Child) -> Iterator[Bus]:
    """A bus of this test's own, in another process: clients may block."""
    with _bus(request, jitney_child, "session") as bus:
        yield bus


@pytest.fixture
def jitney_session_bus(jitney_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Bus:
    """The same, and it is the session bus of this process and its children."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", jitney_bus.address)
    return jitney_bus


@pytest.fixture
def jitney_system_bus(
    request: pytest.FixtureRequest, jitney_child: Child, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bus]:
    """One more, which is the system bus of this process and its children."""
    with _bus(request, jitney_child, "system") as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        yield bus


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" or not report.failed:
        return
    given = getattr(item, "funcargs", {})
    # The session bus is the bus.
    buses = {name: given[name] for name in ("jitney_bus", "jitney_system_bus") if name in given}
    for name, bus in buses.items():
        try:
            text = bus.journal.text(SHOWN)
        except Exception as error:
            text = f"no journal: {error}"
        report.sections.append((f"Messages on {name}", text))
