"""``sharedmask frames convert``: data sets of frames from one format to another.

Covers: its options. Does not cover: what all verbs share (``base``), any of the work.
"""

import click

from sharedmask.cli.base import check_output, commands


@commands.group()
def frames() -> None:
    """Runs as data sets of volumes."""


@frames.command("convert")
@click.argument("source", metavar="A")
@click.argument("target", metavar="B")
@click.option("--gzip", "level", type=click.IntRange(0, 9), metavar="LEVEL", help="Compress B, an .h5 file.")
def convert_file(source: str, target: str, level: int | None) -> None:
    """Write the volumes of A to B, holding one at a time: .nii, .nii.gz and .h5 (NFDH5)."""
    from sharedmask.frames.convert import convert

    check_output(target)
    compression = None if level is None else "gzip"
    convert(source, target, compression=compression, compression_opts=level)
