"""What a command answers when it is not done: an errno, as kdbus's manual pages name them.

Invariant: the number is positive; a front that answers with negative ones turns it around itself.
"""

from __future__ import annotations

import errno


class KdbusError(Exception):
    """A command that ends with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number
