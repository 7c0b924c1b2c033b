"""kdbus's semantics, without a kernel: domains, buses, endpoints, connections and their messages.

Invariant: nothing in here knows how a command came in or where a client's memory is; everything
can be driven by plain calls. Whoever calls holds the domain's lock, or is the only one who calls.

What holds is described by kdbus's manual pages and measured by its selftests; the words and the
code here are our own. A bus of kdbus *is* a bus of the core (`jitney.broker.bus.Bus`): ids, names
and users are the core's, and what it tells its front becomes kdbus's notifications.
"""
