"""What this machine is, what of it may be used, its files and processes.

Covers: what the platform has, amounts of memory, limits and budgets, settings, what others wrote, files
written whole, tables of text. Does not cover: images.

From the bottom up::

    platform  inputs  limits  units  threads  process  settings  identity  locks
    files  together  usage  budget  delimited  monitor
"""
