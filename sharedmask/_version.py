"""The version, for all who say it: the package, its command line, what it writes.

It is that of the tags of git, which a build writes to ``_build``; a folder that was never built has none.
"""

try:
    from sharedmask._build import __version__ as __version__
except ImportError:
    __version__ = "0.1.0.dev0"
