"""``sharedmask network``: maps of what lesions are connected to.

Covers: its options. Does not cover: what all verbs share (``base``), any of the work.
"""

import sys
from typing import Any

import click

from sharedmask.cli.base import Verb, commands, echo_study, is_given, with_settings
from sharedmask.cli.extract import check_folder


@commands.command(cls=Verb)
@click.argument("lesions", nargs=-1, required=True, metavar="LESION...")
@click.option("--connectome", required=True, metavar="DIR", help="An .h5 file or a folder of them.")
@click.option("--out", required=True, metavar="DIR", help="Where each lesion's maps go.")
@click.option("--method", type=click.Choice(["boes", "pini"]), default="boes", show_default=True)
@click.option("--pini-percentile", type=float, default=20, show_default=True, metavar="P")
@click.option("--t-threshold", type=float, metavar="T", help="Write maps of the voxels with larger t.")
@click.option("--fdr-alpha", type=float, default=0.05, show_default=True, metavar="A")
@click.option("--output-space", type=click.Choice(["connectome", "lesion"]), default="connectome")
@click.option("--resampling-target", type=click.Choice(["data"]), help="Resample lesions on other grids.")
@click.option("--batch-size", type=int, metavar="N", help="Lesions that go together; default: by memory.")
@click.option("-j", "--n-jobs", type=int, default=1, show_default=True, help="Workers; -1 for all CPUs.")
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@click.option("--resume", is_flag=True, help="Take up a run that stopped: leave out what is complete.")
@with_settings
def network(
    lesions: tuple[str, ...], connectome: str, out: str, batch_size: int | None, resume: bool, **settings: Any
) -> None:
    """Map what each LESION (a file, or a quoted pattern) is connected to.

    Exit code 1: some lesions failed; OUT/.sharedmask/failed has a file for each.
    """
    from sharedmask.network.mapper import FunctionalNetworkMapper
    from sharedmask.network.output import map_to

    if settings["method"] == "boes" and is_given("pini_percentile"):
        raise click.UsageError("--pini-percentile is for --method pini")
    check_folder(out)
    mapper = FunctionalNetworkMapper(**settings).fit(connectome)
    given = lesions[0] if len(lesions) == 1 else list(lesions)
    report = map_to(given, mapper, out, batch_size=batch_size, resume=resume, progress=sys.stderr.isatty())
    echo_study(report, "lesions")
