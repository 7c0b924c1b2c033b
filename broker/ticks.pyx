# cython: language_level=3
"""Ticks: what time it is, for records that are stamped one by one; see `ticks.pxd`.

Invariant: nanoseconds on a clock that only goes forward, the same that `time.monotonic_ns()` shows;
`ticks.py` is the same in plain Python. No object is made for it.
"""
