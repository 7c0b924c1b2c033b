"""What kdbus takes for a name of a service, of a bus or an endpoint, and for attach flags.

Invariant: these say yes or no (or EINVAL) about bytes and numbers alone, whoever sent them.
"""

from __future__ import annotations

import errno
import re

from .constants import ATTACH_ALL, NAME_MAX, NONE64
from .errors import KdbusError

_NAME = re.compile(rb"[A-Za-z_-][A-Za-z0-9_-]*(?:\.[A-Za-z_-][A-Za-z0-9_-]*)+\Z")
_WILD = re.compile(rb"[A-Za-z_-][A-Za-z0-9_-]*(?:\.[A-Za-z_-][A-Za-z0-9_-]*)*\.\*\Z")
_SYSNAME = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")


def is_name(text: bytes, wildcard: bool) -> bool:
    """A well-known name; with `wildcard`, one that ends in ".*" as well."""
    if len(text) > NAME_MAX:
        return False
    return bool(_NAME.match(text)) or (wildcard and bool(_WILD.match(text)))


def is_sysname(text: bytes) -> bool:
    """What a bus, an endpoint or a connection's description may be called."""
    return bool(_SYSNAME.match(text))


def attach_flags(flags: int) -> int:
    """Flags that a client gave; all ones mean all there are."""
    if flags == NONE64:
        return ATTACH_ALL
    if flags & ~ATTACH_ALL:
        raise KdbusError(errno.EINVAL)
    return flags
