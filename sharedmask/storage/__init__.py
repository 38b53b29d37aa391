"""Bytes that others can attach to, and who cleans up.

Covers: segments, shared arrays, files of rows, kept results, the registry and its reaper. Does not
cover: requests (``compute``).

From the bottom up::

    container  views  memory  mapped_file  segment  registry  arrays  disk  spill  rows  entries  kept
"""
