"""Endpoints: more doors to a bus, each with a policy of its own; who opens them, and how.

Invariant: what an endpoint lets pass is decided in `jitney.broker.endpoint` and in `guard`, and
nowhere else; the rest of this package opens and closes them and speaks with people.
"""
