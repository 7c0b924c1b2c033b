"""asyncio without OpenSSL, which a bus on Unix sockets has no use for.

Invariant: asyncio is as on a Python that was built without `ssl`, a case it provides for by itself
(`try: import ssl`), and nothing else is: whoever imports `ssl` later gets it, and where asyncio or
`ssl` is loaded already, nothing happens. OpenSSL would be a tenth of the daemon's memory.
"""

from __future__ import annotations

import sys


def import_asyncio() -> None:
    """Imports asyncio; the first one to do so decides whether it knows `ssl`."""
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # means: there is no such module
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]
