"""kdbus's commands over sockets: its structs as frames, and a pool that the client maps.

Invariant: docs/native.md is the format, and all of it; nothing here waits for a client.
"""
