"""The program, run as a user runs it."""

import os
import subprocess
import sys


def sharedmask(*args, env=None, timeout=200, **kwargs):
    """The finished program: its output, errors and exit code; ``env`` is added to ours."""
    command = [sys.executable, "-W", "error", "-m", "sharedmask", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}, **kwargs
    )
