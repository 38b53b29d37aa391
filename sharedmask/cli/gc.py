"""``sharedmask gc``: what dead processes left, and rows on disk that nobody uses, removed.

Covers: its options. Does not cover: what all verbs share (``base``), what is removed: segments and
records (``registry``), rows on disk (``disk``), files that killed writers left (``files``).
"""

import itertools
from pathlib import Path

import click

from sharedmask.cli.base import commands, echo


@commands.command()
@click.option("--disk", "kept", is_flag=True, help="And the rows kept on disk that nobody uses now.")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
def gc(kept: bool, folders: tuple[Path, ...]) -> None:
    """Remove the shared memory of processes that died, and the files they left half written.

    FOLDERS of outputs are looked through for such files, too.
    """
    from sharedmask.storage import disk, registry
    from sharedmask.system import files

    removed = registry.reap() + disk.sweep()
    removed += itertools.chain.from_iterable(map(files.sweep, folders))
    removed += disk.remove_unused() if kept else []
    for name in removed:
        click.echo(f"removed {name}")
    echo(f"{len(removed)} segments and files removed")
