# cython: language_level=3
"""Little: little-endian stores, put in place by the compiler; see `little.pxd` for what there is.

Invariant: nothing is checked; whoever writes has made room. `little.py` is the same in plain Python.
"""
