"""sd-bus: systemd's library, straight from its C interface.

Invariant: every function's result is looked at (`_ok`), and every object that is given to us is
given back. Callbacks never raise into C: what they raise ends the round (`_guarded`).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from typing import Any

from .program import INTERFACE, OUTSTANDING, PATH, Round, Wrong

_sd = ctypes.CDLL("libsystemd.so.0")
_HANDLER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p)
_FOREVER = c_uint64(2**64 - 1)
_path, _interface = PATH.encode(), INTERFACE.encode()

for _name, _types in {
    "sd_bus_new": [c_void_p],
    "sd_bus_set_address": [c_void_p, c_char_p],
    "sd_bus_set_bus_client": [c_void_p, c_int],
    "sd_bus_start": [c_void_p],
    "sd_bus_get_unique_name": [c_void_p, c_void_p],
    "sd_bus_process": [c_void_p, c_void_p],
    "sd_bus_wait": [c_void_p, c_uint64],
    "sd_bus_add_object": [c_void_p, c_void_p, c_char_p, _HANDLER, c_void_p],
    "sd_bus_match_signal": [
        *(c_void_p, c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, _HANDLER, c_void_p)
    ],
    "sd_bus_message_is_method_call": [c_void_p, c_char_p, c_char_p],
    "sd_bus_message_is_method_error": [c_void_p, c_char_p],
    # The fixed arguments of functions that take any number of them.
    "sd_bus_message_read": [c_void_p, c_char_p],
    "sd_bus_reply_method_return": [c_void_p, c_char_p],
    "sd_bus_emit_signal": [c_void_p, c_char_p, c_char_p, c_char_p, c_char_p],
    "sd_bus_call_method": [
        *(c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, c_void_p, c_void_p, c_char_p)
    ],
    "sd_bus_call_method_async": [
        *(c_void_p, c_void_p, c_char_p, c_char_p, c_char_p, c_char_p, _HANDLER, c_void_p),
        c_char_p,
    ],
}.items():
    getattr(_sd, _name).argtypes = _types
for _name in ("sd_bus_message_unref", "sd_bus_slot_unref"):
    getattr(_sd, _name).argtypes = [c_void_p]
    getattr(_sd, _name).restype = c_void_p


def version() -> str:
    # The library does not say; its file is libsystemd.so.0.VERSION.
    with open("/proc/self/maps") as maps:
        for line in maps:
            if "libsystemd.so" in line:
                return os.path.basename(line.split()[-1])
    return "?"


def _ok(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _string(message: int) -> str:
    text = c_char_p()
    _ok(_sd.sd_bus_message_read(message, b"s", byref(text)))
    return (text.value or b"").decode()


def _numbers(message: int, types: bytes) -> list[int]:
    found = [c_uint32() for _ in types]
    _ok(_sd.sd_bus_message_read(message, types, *map(byref, found)))
    return [number.value for number in found]


def _connect(address: str) -> c_void_p:
    bus = c_void_p()
    _ok(_sd.sd_bus_new(byref(bus)))
    _ok(_sd.sd_bus_set_address(bus, address.encode()))
    _ok(_sd.sd_bus_set_bus_client(bus, 1))
    _ok(_sd.sd_bus_start(bus))
    return bus


def serve(address: str, ready: Callable[[str], None]) -> None:
    bus = _connect(address)

    def called(message: int, _data: object, _error: object) -> int:
        if _sd.sd_bus_message_is_method_call(message, _interface, b"Echo"):
            text = c_char_p()
            _ok(_sd.sd_bus_message_read(message, b"s", byref(text)))
            return _ok(_sd.sd_bus_reply_method_return(message, b"s", text))
        if _sd.sd_bus_message_is_method_call(message, _interface, b"Emit"):
            first, count = _numbers(message, b"uu")
            for number in range(first, first + count):
                _ok(_sd.sd_bus_emit_signal(bus, _path, _interface, b"Tick", b"u", c_uint32(number)))
            return _ok(_sd.sd_bus_reply_method_return(message, None))
        return 0

    handler = _HANDLER(called)
    _ok(_sd.sd_bus_add_object(bus, None, _path, handler, None))
    name = c_char_p()
    _ok(_sd.sd_bus_get_unique_name(bus, byref(name)))
    ready((name.value or b"").decode())
    while True:
        if _ok(_sd.sd_bus_process(bus, None)) == 0:
            _ok(_sd.sd_bus_wait(bus, _FOREVER))


class Client:
    def __init__(self, address: str, destination: str) -> None:
        self.bus = _connect(address)
        self.to = destination.encode()
        self.failed: BaseException | None = None

    def _guarded(self, handle: Callable[[int], None]) -> Any:
        def called(message: int, _data: object, _error: object) -> int:
            try:
                if _sd.sd_bus_message_is_method_error(message, None):
                    raise Wrong("an error came back")
                handle(message)
            except BaseException as error:
                self.failed = error
            return 0

        return _HANDLER(called)

    def _process_until(self, over: Callable[[], bool]) -> None:
        while not over():
            if _ok(_sd.sd_bus_process(self.bus, None)) == 0:
                _ok(_sd.sd_bus_wait(self.bus, _FOREVER))
            if self.failed is not None:
                raise self.failed

    def calls(self, round: Round) -> None:
        reply = c_void_p()
        call = (self.bus, self.to, _path, _interface, b"Echo", None, byref(reply), b"s")
        while round.more():
            text = round.next_text()
            begun = round.now()
            _ok(_sd.sd_bus_call_method(*call, c_char_p(text.encode())))
            got = _string(reply.value or 0)
            _sd.sd_bus_message_unref(reply)
            round.answered(begun, text, got)

    def calls16(self, round: Round) -> None:
        # One handler for each call under way: making one a call would cost more than the call.
        sent = [(0, "")] * OUTSTANDING

        def next_one(place: int) -> None:
            if round.more():
                text = round.next_text()
                sent[place] = (round.now(), text)
                call = (self.bus, None, self.to, _path, _interface, b"Echo", handlers[place])
                encoded = c_char_p(text.encode())
                _ok(_sd.sd_bus_call_method_async(*call, None, b"s", encoded))

        def finished(place: int, message: int) -> None:
            round.answered(*sent[place], _string(message))
            next_one(place)

        handlers = [
            self._guarded(lambda message, place=place: finished(place, message))  # type: ignore[misc]
            for place in range(OUTSTANDING)
        ]
        for place in range(OUTSTANDING):
            next_one(place)
        self._process_until(round.complete)

    def signals(self, round: Round) -> None:
        slot, reply = c_void_p(), c_void_p()
        heard = self._guarded(lambda message: round.signalled(*_numbers(message, b"u")))
        where = (self.to, _path, _interface, b"Tick")
        _ok(_sd.sd_bus_match_signal(self.bus, byref(slot), *where, heard, None))
        call = (self.bus, self.to, _path, _interface, b"Emit", None, byref(reply), b"uu")
        while size := round.batch():
            _ok(_sd.sd_bus_call_method(*call, c_uint32(round.done), c_uint32(size)))
            _sd.sd_bus_message_unref(reply)
            self._process_until(round.complete)
        _sd.sd_bus_slot_unref(slot)
