"""Python runs this first where this folder is in ``PYTHONPATH``: the system is the one that is asked for."""

import os

if profile := os.environ.get("BARE_PROFILE"):
    import bare

    bare.take_away(profile)
