"""A stand-in for the `cython` module, for machines that do not have Cython.

Invariant: everything here is a no-op of the right shape, so that a module written in Cython's
pure Python mode runs unchanged where it was not compiled. A compiled module never imports it:
Cython answers `import cython` itself. Module heads write

    try:
        import cython
    except ImportError:
        from ._cython import cython

`tests/test_layout.py` holds every `cython.NAME` of the tree against this file.
"""

from __future__ import annotations

from typing import Any


class _Nothing:
    """A decorator, a maker of decorators and a `with` block, none of which does anything."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        # `@cython.cfunc` hands us the function; `@cython.exceptval(-1)` wants a decorator.
        if len(args) == 1 and not options and callable(args[0]):
            return args[0]
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class cython:  # noqa: N801  (it takes the place of a module)
    """What the tree may use of Cython's `cython` module."""

    compiled = False

    cfunc = ccall = cclass = inline = final = locals = returns = exceptval = _Nothing()
    nogil = gil = freelist = no_gc = no_gc_clear = _Nothing()
    boundscheck = wraparound = initializedcheck = cdivision = _Nothing()

    @staticmethod
    def cast(_type: object, value: Any) -> Any:
        """The value as it is: plain Python has no narrower integers."""
        return value

    @staticmethod
    def declare(_type: object, value: Any = None) -> Any:
        """The value a C variable would start with."""
        return value

    # In plain Python types only ever stand in annotations and in `locals()`.
    bint = bool
    double = float
    char = uchar = short = ushort = uint = long = ulong = longlong = ulonglong = int
    size_t = Py_ssize_t = int
    int = int
    void = p_void = p_char = p_uchar = object
