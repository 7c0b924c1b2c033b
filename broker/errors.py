"""Errors: what the core answers when it will not do what a peer asked.

Invariant: a Refused says what a peer did, never what the bus did wrong; it ends that one
request. Its code is neutral (kdbus would say EPERM, ENOBUFS, ESRCH …); its text is what a
classic client is shown. Bugs of ours are ordinary exceptions and carry other names.
"""

from __future__ import annotations

NO_OWNER = "no-owner"
UNKNOWN_SERVICE = "unknown-service"
ACCESS_DENIED = "access-denied"
LIMITS = "limits"
NOT_SUPPORTED = "not-supported"
NO_REPLY = "no-reply"
NOT_FOUND = "not-found"
INVALID_ARGS = "invalid-args"
FAILED = "failed"


class Refused(Exception):
    """A request that the bus refuses. `code` is one of this module's constants."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Mediated(Refused):
    """The same, where it was a security module's word and not the policy's."""
