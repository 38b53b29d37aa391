"""What this machine is, what of it may be used, its files and processes.

Covers: amounts of memory, limits and budgets, settings, files written whole. Does not cover: images.

From the bottom up::

    units  limits  process  settings  files  usage  budget  monitor
"""
