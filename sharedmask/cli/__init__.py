"""The programs ``sharedmask`` and ``sharedmask-bids``: verbs, one file each.

Covers: options, exit codes, what is printed where. Does not cover: any of the work.
"""


def main() -> None:
    """The console script ``sharedmask``."""
    from sharedmask.cli import cache, demo, doctor, extract, frames, info, network, run, share, submit
    from sharedmask.cli.base import commands
    from sharedmask.cli.base import run as run_program

    for verbs in (extract, info, network, demo, frames, share, cache, doctor, submit, run):
        assert verbs  # imported for the verbs that it adds
    run_program(commands)
