"""The program ``sharedmask``: all its verbs together.

Covers: which modules bring verbs. Does not cover: any verb (``cli``, ``cohort_cli``).
"""

from sharedmask import cohort_cli
from sharedmask.cli import commands, run

commands.add_command(cohort_cli.submit)
commands.add_command(cohort_cli.run_pipeline)


def main() -> None:
    """The console script."""
    run(commands)
