"""``sharedmask index``: the seek points of .nii.gz files, for passes on all cores and for single volumes.

Covers: its options. Does not cover: what all verbs share (``base``), indexes (``indexes``).
"""

import click

from sharedmask.cli.base import commands, with_settings
from sharedmask.errors import ParameterError, SharedMaskError


@commands.command()
@click.argument("bold", nargs=-1, required=True)
@click.option("--beside", is_flag=True, help="Next to each file, as FILE.gzi.")
@with_settings
def index(bold: tuple[str, ...], beside: bool) -> None:
    """Make an index of each BOLD (.nii.gz), so that all cores decode it from now on.

    Why others have none is said at the end. Indexes are kept under the setting cache_dir, else in ~/.cache;
    they need rapidgzip to be made, not to be used.
    """
    from sharedmask.sources.opening import open_source
    from sharedmask.storage import indexes

    refused: list[Exception] = []
    for name in bold:
        try:
            made = indexes.make(open_source(name), beside=beside)
        except ParameterError:  # there will be none of the others either
            raise
        except (SharedMaskError, OSError) as error:
            refused.append(error)
        else:
            click.echo(str(made))
    for before in refused[:-1]:
        click.echo(f"sharedmask: {before}", err=True)
    if refused:
        raise refused[-1]
