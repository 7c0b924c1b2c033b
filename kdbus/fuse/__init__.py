"""kdbusfs over FUSE: a mounted tree of buses and endpoints, for programs that know only kdbus.

Invariant: nothing here decides what a command does; it gets commands from the kernel, memory from
the client and pools into its page cache, and keeps a client's tricks from stopping anybody else.
"""
