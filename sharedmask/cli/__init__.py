"""The programs ``sharedmask`` and ``sharedmask-bids``: verbs, one file each.

Covers: options, exit codes, what is printed where. Does not cover: any of the work.

A new verb is a new file: whatever it adds to ``base.commands`` is there.
"""

import sys
from importlib import import_module
from pkgutil import iter_modules


def main() -> None:
    """The console script ``sharedmask``."""
    try:
        verbs()
    except KeyboardInterrupt:
        sys.stderr.write("sharedmask: interrupted\n")
        sys.exit(130)
    base = import_module(f"{__name__}.base")
    base.run_program(base.commands)


def verbs() -> None:
    """Have all verbs among the commands."""
    for verb in iter_modules(__path__):
        import_module(f"{__name__}.{verb.name}")
