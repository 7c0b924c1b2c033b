"""One bus, two worlds: clients of kdbus and of classic D-Bus as peers of each other.

Invariant: there is one registry, one counter of ids and one order of messages, the core's. Each
message that goes from one world into the other is translated once, here, and lies in the receiver's
pool or queue before whatever happened after it. A call across has one entry in each world's table
of awaited replies, and both end together (`calls`).

Each world sees the other's connections as some of its own: to kdbus a classic one is a `Guest`, to
the classic front one of kdbus is a connection of the core whose messages somebody takes (`taker`).
All of it is called with the domain's lock held. Nothing here knows sockets or FUSE; `attach()` is
what both of kdbus's fronts begin with.
"""
