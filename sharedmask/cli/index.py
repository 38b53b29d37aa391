"""``sharedmask index``: the seek points of .nii.gz files, for passes on all cores and for single volumes.

Covers: its options. Does not cover: what all verbs share (``base``), indexes (``indexes``).
"""

import click

from sharedmask.cli.base import commands, with_settings


@commands.command()
@click.argument("bold", nargs=-1, required=True)
@click.option("--beside", is_flag=True, help="Next to each file, as FILE.gzi.")
@with_settings
def index(bold: tuple[str, ...], beside: bool) -> None:
    """Make an index of each BOLD (.nii.gz), so that all cores decode it from now on.

    Indexes are kept under the setting cache_dir, else in ~/.cache; they need rapidgzip to be made, not to be
    used.
    """
    from sharedmask.sources.opening import open_source
    from sharedmask.storage import indexes

    for name in bold:
        click.echo(str(indexes.make(open_source(name), beside=beside)))
