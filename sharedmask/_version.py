"""The version, for all who say it: the package, its command line, what it writes."""

__version__ = "0.1.0"
