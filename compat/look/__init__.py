"""Commands that look into a running bus: `jitney status`, `peers`, `names`, `matches` and `top`.

Invariant: they are ordinary clients, which ask org.jitney.Inspect1 and change nothing; the bus
imports none of them.
"""
