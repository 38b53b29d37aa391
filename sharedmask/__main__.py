"""``python -m sharedmask`` is the command ``sharedmask``."""

from sharedmask.cli import main

main()
