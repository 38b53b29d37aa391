"""Bytes that others can attach to, and who cleans up.

Covers: segments, files of rows, kept results, the registry and its reaper. Does not cover: requests
(``compute``).

From the bottom up::

    container  views  memory  mapped_file  segment  registry  disk  spill  rows  entries  kept
"""
