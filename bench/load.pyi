"""Types of the compiled `load`."""

from .link import Histogram, Link

def calls(
    callers: list[Link],
    servers: list[Link],
    window: int,
    seconds: float,
    histogram: Histogram,
    busy: bool = False,
) -> tuple[int, float]: ...
def signals(
    sender: Link,
    receivers: list[Link],
    bystanders: list[Link],
    batch: int,
    ahead: int,
    seconds: float,
    histogram: Histogram,
) -> tuple[int, float]: ...
def driver(
    link: Link, messages: list[bytes], window: int, seconds: float, histogram: Histogram
) -> tuple[int, float]: ...
def flood(
    sender: Link, caller: Link, server: Link, messages: int, histogram: Histogram
) -> tuple[int, int, float]: ...
def drain(link: Link, quiet: float = 0.3) -> int: ...
