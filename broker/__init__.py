"""The routing core: a kdbus-style bus that knows no sockets, no XML, no paths, no environment.

Invariant: nothing in this package imports `jitney.compat`, and all of it can be driven by
plain calls. Messages come in as bytes, go out as bytes on queues; who reads them from a
socket and who writes them to one is the front's matter (classic D-Bus: `jitney.compat`).
"""

__version__ = "0.1.0"
