"""`python -m jitney.compat`: the daemon, where its script `jitney-daemon` is not at hand."""

from jitney.compat.cli import main_entry

main_entry()
