"""Types of the compiled `connects`."""

from .link import Histogram

def connects(
    path: str, seconds: float, pipelined: bool, histogram: Histogram
) -> tuple[int, float]: ...
def stay(path: str, count: int) -> list[int]: ...
