"""Bytes that others can attach to, and who cleans up.

Covers: segments, shared arrays, kept files, the registry and its reaper. Does not cover: requests
(``compute``).

From the bottom up::

    views  container  memory_pages  memory  mapped_file  segment  registry  arrays  cache  disk  spill
    indexes  rows
"""
