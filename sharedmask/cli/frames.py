"""``sharedmask frames convert``: data sets of frames from one format to another.

Covers: its options. Does not cover: what all verbs share (``base``), any of the work.
"""

import click

from sharedmask.cli.base import commands, is_given
from sharedmask.cli.extract import check_output


@commands.group()
def frames() -> None:
    """Runs as data sets of volumes."""


@frames.command("convert")
@click.argument("source", metavar="A")
@click.argument("target", metavar="B")
@click.option("--gzip", "level", type=click.IntRange(0, 9), metavar="LEVEL", help="Compress B, an .h5 file.")
@click.option(
    "--version",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    metavar="N",
    help="Of B's format, if it is an .h5 file: nifreeze reads 1.",
)
def convert_file(source: str, target: str, level: int | None, version: int) -> None:
    """Write the volumes of A to B, holding one at a time: .nii, .nii.gz and .h5 (NFDH5)."""
    from sharedmask.frames.convert import convert
    from sharedmask.frames.nfdh5 import is_nfdh5

    check_output(target)
    if is_given("version") and not is_nfdh5(target):
        raise click.UsageError(f"--version is of an .h5 file: {target} is none")
    compression = None if level is None else "gzip"
    convert(source, target, compression=compression, compression_opts=level, version=version)
