"""`python -m jitney.bench`: the same as `jitney bench`."""

import sys

from .cli import main

sys.exit(main())
