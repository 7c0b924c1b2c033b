"""Types of the compiled `rpc`."""

from mmap import mmap

class RpcError(Exception): ...

class Buffer:
    size: int
    at: int
    def __init__(self, data: bytes, size: int = 0) -> None: ...

def command(fd: int, number: int, data: bytes) -> bytes: ...
def classic_calls(
    fd: int, call: Buffer, body: int, reply_at: int, first: int, times: list[int], count: int
) -> int: ...
def classic_serve(fd: int, reply: Buffer, reply_at: int, want: Buffer) -> None: ...

class Native:
    freed: int
    last_serial: int
    def __init__(
        self,
        fd: int,
        pool: mmap,
        frame: Buffer,
        message_at: int,
        freed: int,
        serial: int,
        accepts: bool,
    ) -> None: ...
    def calls(
        self, body: Buffer, place: int, size: int, memfd: int, times: list[int], count: int
    ) -> None: ...
    def serve(self, want: Buffer) -> None: ...

class Ioctls:
    def __init__(self, fd: int, pool: mmap, message: Buffer) -> None: ...
    def calls(
        self, body: Buffer, stamped: bool, times: list[int], count: int, first: int
    ) -> int: ...
    def serve(self, want: Buffer) -> None: ...
