"""Every knob, its value, and where that came from: what ``sharedmask.system.settings`` shows to users.

Covers: the names that callers use. Does not cover: how values are found (``sharedmask.system.settings``).
"""

from sharedmask.system.settings import Settings, current, origins, using

__all__ = ["Settings", "current", "origins", "using"]
