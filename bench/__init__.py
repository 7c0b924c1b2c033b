"""Benchmarks of D-Bus brokers, side by side.

Invariant: a figure stands only where what went through the broker was checked, and a comparison
only between brokers that were measured in the same run, in turns, with one configuration.
"""
