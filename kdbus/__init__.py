"""kdbus's own interface before `jitney.broker.kdbus`: commands as compiled programs give them.

Invariant: what a command means is decided in the core; here its bytes are taken apart and put
together, and a client's memory is read and written through an interface, whoever implements it:
FUSE here, a socket or a preloaded library elsewhere.
"""
