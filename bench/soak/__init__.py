"""Hours of mixed traffic through one bus, and the books of every message in it.

Invariant: what is said to be wrong is wrong: a rule of the books is one that the bus promises, see
docs/security.md. Works without the compiled load, and with a bus of either build.
"""
