"""The program ``sharedmask``: all its verbs together.

Covers: which modules bring verbs. Does not cover: any verb (``cli``, ``upkeep_cli``, ``cohort_cli``).
"""

from sharedmask import cohort_cli, upkeep_cli
from sharedmask.cli import commands, run

__all__ = ["cohort_cli", "main", "upkeep_cli"]  # imported for the verbs that they add


def main() -> None:
    """The console script."""
    run(commands)
