"""Programs on real client libraries: what an echo service's users and the service itself run.

Invariant: these files import nothing of jitney's and run under any interpreter from Python 3.11
on that has the library (see `__main__`); `libraries` starts them and reads what they print.
"""
