"""Processes that work for the caller, and see what it sees.

Covers: where they come from, what they have in common with their caller, random numbers, errors.
Does not cover: what is computed (``compute``).

From the bottom up::

    failure  modules  variables  generators  pure  packing
    streams  surroundings  idle  worker  sender  threaded  template  pool  executor
"""
