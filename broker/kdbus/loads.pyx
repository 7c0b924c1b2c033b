# cython: language_level=3
"""Loads: little-endian numbers in a buffer, put in place by the compiler; see `loads.pxd`.

Invariant: nothing is checked; whoever reads has seen that it is there. `loads.py` is the same in
plain Python.
"""
