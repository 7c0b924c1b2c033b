"""Tracing from the outside: `jitney trace`, `jitney record` and `jitney replay`.

Invariant: the bus knows none of this; it hands out records (org.jitney.Trace1), and what they mean,
how they are paired and what they look like is decided here.
"""
