"""Vectors: process_vm_readv(2) and process_vm_writev(2), for plain Python.

Invariant: nothing here is kept. Whose memory it is, and how long a call may take, is for callers.
"""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_size_t), ("length", ctypes.c_size_t)]


readv = _libc.process_vm_readv
writev = _libc.process_vm_writev
for _call in (readv, writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong,
        ctypes.c_ulong,
    ]  # fmt: skip
