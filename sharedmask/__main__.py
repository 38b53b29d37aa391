"""``python -m sharedmask`` is the command ``sharedmask``."""

from sharedmask.program import main

main()
