"""``sharedmask gc``: what dead processes left, and rows on disk that nobody uses, removed.

Covers: its options. Does not cover: what all verbs share (``base``), what is removed: segments and
records (``registry``), rows on disk and unfinished files (``disk``).
"""

import click

from sharedmask.cli.base import commands, echo


@commands.command()
@click.option("--disk", "kept", is_flag=True, help="And the rows kept on disk that nobody uses now.")
def gc(kept: bool) -> None:
    """Remove the shared memory of processes that died, and the files they left half written."""
    from sharedmask.storage import disk, registry

    removed = registry.reap() + disk.sweep()
    removed += disk.remove_unused() if kept else []
    for name in removed:
        click.echo(f"removed {name}")
    echo(f"{len(removed)} segments and files removed")
