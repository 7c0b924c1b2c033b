"""Scenarios about being on the bus and owning names.

Invariant: a scenario uses its own names only, and only what `Stage` and `Client` offer.
"""

from __future__ import annotations

import random

from .script import PEER, Stage, scenario, unordered

ALL_SIGNALS = "type='signal'"


@scenario()
def hello(stage: Stage) -> None:
    watcher = stage.client("watcher")
    watcher.driver("AddMatch", "s", ALL_SIGNALS)
    client = stage.client("client")
    client.driver("Hello")
    client.driver("Hello", "s", "argument")
    client.driver("Hello", path=b"/elsewhere")
    client.driver("Hello", interface=None)
    client.driver("NameHasOwner", "s", client.raw.unique_name)
    client.close()
    watcher.driver("NameHasOwner", "s", client.raw.unique_name)
    watcher.driver("GetNameOwner", "s", client.raw.unique_name)


@scenario()
def hello_in_other_ways(stage: Stage) -> None:
    for number, given in enumerate(
        [{"path": b"/elsewhere"}, {"flags": 1}, {"interface": None}, {"big_endian": True}]
    ):
        client = stage.client(f"c{number}", hello=False)
        serial = client.raw.driver(b"Hello", **given)  # type: ignore[arg-type]
        stage.settle(f"Hello {given}", client, hello=serial)
        client.driver("GetId")


@scenario()
def before_hello(stage: Stage) -> None:
    stage.client("watcher").driver("AddMatch", "s", ALL_SIGNALS)
    patient = stage.client("patient", hello=False)
    patient.driver("GetId")
    patient.driver("Ping", interface=PEER)
    patient.driver("Hello", "s", "argument")
    patient.driver("Hello", interface=b"no.such")
    patient.message(1, destination=None, path=b"/", interface=PEER, member=b"GetMachineId")
    patient.message(1, destination=None, path=b"/", interface=b"a.b", member=b"M")
    patient.message(2, destination=None, reply_serial=3)
    patient.message(4, path=b"/", interface=b"a.b", member=b"SignalToTheBus")
    patient.message(2, reply_serial=3)
    patient.hello()
    rude = stage.client("rude", hello=False)
    rude.message(4, destination=None, path=b"/", interface=b"a.b", member=b"Broadcast")
    ruder = stage.client("ruder", hello=False)
    ruder.message(1, destination=b"a.b", path=b"/", member=b"M")


@scenario()
def request_name_with_all_flags(stage: Stage) -> None:
    stage.client("watcher").driver("AddMatch", "s", "type='signal',sender='org.freedesktop.DBus'")
    first, second = stage.client("first"), stage.client("second")
    for mine in range(8):
        for yours in range(8):
            name = f"flags.n{mine}{yours}"
            first.driver("RequestName", "su", name, mine)
            second.driver("RequestName", "su", name, yours)
            first.driver("ListQueuedOwners", "s", name)
            second.driver("RequestName", "su", name, 7 - yours)
            first.driver("ReleaseName", "s", name)
            second.driver("ReleaseName", "s", name)


@scenario()
def name_queues(stage: Stage) -> None:
    """Three clients do what a die says, on two names; the die is the same each time."""
    stage.client("watcher").driver("AddMatch", "s", "type='signal',sender='org.freedesktop.DBus'")
    clients = [stage.client(name) for name in ("a", "b", "c")]
    die = random.Random(1)
    for _ in range(150):
        client, name = die.choice(clients), die.choice(["queue.one", "queue.two"])
        action = die.randrange(10)
        if action < 6:
            client.driver("RequestName", "su", name, die.randrange(8))
        elif action < 9:
            client.driver("ReleaseName", "s", name)
        else:
            client.driver("ListQueuedOwners", "s", name)


@scenario()
def bad_names(stage: Stage) -> None:
    client = stage.client("client")
    for name in (
        "", "a", "a.b.", ".a.b", "a..b", "1.a", "a.1", "a b.c", "a-b.c_d", "-.-", ":1.0", ":",
        ":x.y", "org.freedesktop.DBus", "org.freedesktop.DBus.Local", "a." + "b" * 253,
        "a." + "b" * 254, "ä.b",
    ):  # fmt: skip
        client.driver("RequestName", "su", name, 0)
        client.driver("ReleaseName", "s", name)
        client.driver("NameHasOwner", "s", name)
        client.driver("GetNameOwner", "s", name)
    client.driver("RequestName", "su", "flags.unknown", 0xFFFFFFFF)
    client.driver("RequestName", "su", "flags.unknown", 0xFFFFFFF8)


@scenario()
def owners_that_leave(stage: Stage) -> None:
    watcher = stage.client("watcher")
    watcher.driver("AddMatch", "s", "member='NameOwnerChanged'")
    first, second, third = (stage.client(name) for name in ("first", "second", "third"))
    for name in ("leave.one", "leave.two", "leave.three"):
        for client in (first, second, third):
            client.driver("RequestName", "su", name, 0)
    second.driver("ReleaseName", "s", "leave.two")
    first.close()
    for name in ("leave.one", "leave.two", "leave.three"):
        watcher.driver("ListQueuedOwners", "s", name)
    third.close()
    second.close()
    watcher.driver("ListQueuedOwners", "s", "leave.one")


@scenario()
def listings(stage: Stage) -> None:
    client, other = stage.client("client"), stage.client("other")
    other.driver("RequestName", "su", "listed.name", 0)
    client.driver("RequestName", "su", "listed.name", 0)
    client.driver("ListNames", mask=unordered)
    client.driver("ListActivatableNames", mask=unordered)
    for name in (
        "listed.name",
        "org.freedesktop.DBus",
        other.raw.unique_name,
        "no.body",
        "",
        ":9.9",
    ):
        for method in ("GetNameOwner", "ListQueuedOwners", "NameHasOwner"):
            client.driver(method, "s", name)
    other.close()
    client.driver("ListNames", mask=unordered)
    client.driver("ListNames", path=b"/", interface=None, mask=unordered)


@scenario(extra='<limit name="max_names_per_connection">4</limit>')
def limit_of_names(stage: Stage) -> None:
    owner, waiter = stage.client("owner"), stage.client("waiter")
    for number in range(6):
        owner.driver("RequestName", "su", f"limit.n{number}", 0)
        waiter.driver("RequestName", "su", f"limit.n{number}", 0)
    owner.driver("RequestName", "su", "limit.n0", 0)
    owner.driver("ReleaseName", "s", "limit.n1")
    owner.driver("RequestName", "su", "limit.n5", 0)
    waiter.driver("RequestName", "su", "limit.n4", 0)


@scenario(
    extra="""
  <policy context="mandatory">
    <deny own="denied.name"/>
    <deny own_prefix="denied.tree"/>
  </policy>"""
)
def names_that_policy_denies(stage: Stage) -> None:
    client = stage.client("client")
    for name in ("denied.name", "denied.names", "denied.tree", "denied.tree.x", "denied.treehouse"):
        client.driver("RequestName", "su", name, 0)
        client.driver("ReleaseName", "s", name)
