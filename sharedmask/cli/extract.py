"""``sharedmask extract``: signals of regions, for one image or many.

Covers: its options. Does not cover: what all verbs share (``base``), any of the work.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click

from sharedmask.cli.base import (
    Verb,
    cache_dir_option,
    check_form,
    check_output,
    cleaning_options,
    commands,
    echo,
    echo_study,
    regions_maker,
    strategy_of,
    with_settings,
)


@contextlib.contextmanager
def _profiled(path: str | None) -> Iterator[None]:
    """Write what the ``with`` block held over time to ``path``, and its picture beside it."""
    if path is None:
        yield
        return
    from sharedmask.system.monitor import MemoryMonitor

    picture = Path(path).with_suffix(".png")
    if Path(path) == picture:
        raise click.UsageError(f"--profile-memory {path}: that is the picture's name; write mem.dat")
    check_output(path)
    with MemoryMonitor(interval=0.02) as monitor:
        yield
    monitor.write(path)
    try:
        monitor.picture(picture)
    except ImportError:
        click.echo(f"sharedmask: no picture {picture}: matplotlib is not installed", err=True)


@commands.command(cls=Verb)
@click.argument("images", nargs=-1, required=True, metavar="BOLD...")
@click.option("--mask", "mask_list", metavar="M...", multiple=True, help="One or more binary masks.")
@click.option("--masks", metavar="GLOB", help="Pattern of binary masks; quote it.")
@click.option("--atlas", metavar="A", help="Label image.")
@click.option("--lut", metavar="TSV", help="Names of the atlas's labels: columns index and name.")
@click.option(
    "--stat",
    metavar="NAME",
    help="One value per region and volume: mean, median, sum, minimum, maximum, variance, "
    "standard_deviation or pc1. Without it a .tsv holds means, .npz and .h5 the series of all voxels.",
)
@click.option("-o", "--output", metavar="OUT", help=".tsv, .npz, .h5; - is standard output.")
@click.option("--out-dir", metavar="DIR", help="One file per BOLD, named like it; complete ones are skipped.")
@click.option(
    "--format", "form", type=click.Choice(["tsv", "npz", "h5"]), default="tsv", help="In --out-dir."
)
@click.option("--overwrite", is_flag=True, help="Do complete ones in --out-dir again.")
@click.option("--shard", metavar="I/N", help="The I-th of N parts of the images, for array jobs.")
@click.option("--dask", metavar="ADDRESS", help="Work on this Dask cluster; local starts one of --n-jobs.")
@click.option("-j", "--n-jobs", type=int, default=1, show_default=True, help="Workers; -1 for all CPUs.")
@click.option("--smoothing-fwhm", type=float, metavar="MM", help="Smooth BOLD first.")
@click.option(
    "--resampling-target",
    type=click.Choice(["data", "mask"]),
    help="Resample masks on other grids to BOLD (data), or BOLD to the masks.",
)
@click.option("--nan-policy", type=click.Choice(["zero", "propagate", "raise", "omit"]))
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@cache_dir_option
@click.option("--no-cache", is_flag=True, help="Compute, and keep nothing, whatever the settings say.")
@click.option(
    "--profile-memory", metavar="FILE", help="Memory over time, for `mprof plot`, and its picture (.png)."
)
@cleaning_options
@with_settings
def extract(
    images: tuple[str, ...],
    mask_list: tuple[str, ...],
    masks: str | None,
    atlas: str | None,
    lut: str | None,
    output: str | None,
    out_dir: str | None,
    cache_dir: str | None,
    no_cache: bool,
    profile_memory: str | None,
    confounds: tuple[str, ...],
    **options: Any,
) -> None:
    """Extract the signals of regions from each BOLD, in one pass."""
    given = [what for what in (list(mask_list), masks, atlas) if what]
    if len(given) != 1:
        raise click.UsageError("give one of --mask, --masks and --atlas")
    if lut and not atlas:
        raise click.UsageError("--lut names the labels of an --atlas")
    if bool(output) == bool(out_dir) or (output and len(images) > 1):
        raise click.UsageError("give -o OUT for one BOLD, or --out-dir DIR for any number")
    ending = f".{options['form']}" if out_dir else os.path.splitext(cast(str, output))[1].lower()
    check_form(options["stat"], ending)
    options["memory"] = False if no_cache else cache_dir
    regions_on = regions_maker(given[0], atlas, lut, options["resampling_target"])
    with _profiled(profile_memory):
        if out_dir:
            _extract_many(out_dir, list(images), regions_on, list(confounds), **options)
        else:
            _extract_one(cast(str, output), images[0], regions_on, list(confounds), **options)


def _asked(options: dict[str, Any], confounds: list[str]) -> dict[str, Any]:
    """What is asked of each image, as :func:`sharedmask.extract` takes it."""
    from sharedmask.compute.request import Parameters

    asked = {name: value for name, value in options.items() if name in Parameters.__annotations__}
    return asked | {"confounds": confounds or None, "progress": sys.stderr.isatty()}


def _extract_one(
    output: str, bold: str, regions_on: Callable[[Any], Any], confounds: list[str], **options: Any
) -> None:
    from sharedmask.image.extraction import Extraction
    from sharedmask.regions.naming import columns, members
    from sharedmask.study.tables import series_writer, write_series, write_table

    stat = options["stat"]
    as_table = stat is not None or output == "-" or output.endswith(".tsv")
    check_output(output)
    if not as_table:
        series_writer(output)
    asked = Extraction.prepared(
        bold,
        regions_on,
        options["smoothing_fwhm"],
        strategy=strategy_of(stat) if as_table else None,
        **_asked(options, confounds),
    )
    regions, start = asked.request.regions, time.monotonic()
    (columns if as_table else members)(regions.names)  # refused before the pass
    signals = asked.run(options["memory_limit"], options["memory"])
    if as_table:
        write_table(output, signals, regions.names)
    else:
        series = signals.values() if isinstance(signals, dict) else signals
        write_series(output, dict(zip(regions.names, series, strict=True)))
    took = time.monotonic() - start
    echo(f"{bold}: {len(regions)} regions x {asked.source.n_timepoints} volumes in {took:.1f} s")


def _extract_many(
    folder: str, images: list[str], regions_on: Callable[[Any], Any], confounds: list[str], **options: Any
) -> None:
    from sharedmask.study.executors import on_dask
    from sharedmask.study.output import extract_to
    from sharedmask.system.process import effective_n_jobs

    asked, dask = _asked(options, confounds), options["dask"]
    n_jobs = effective_n_jobs(asked.pop("n_jobs"))
    once = ("overwrite", "shard", "memory", "memory_limit", "smoothing_fwhm", "resampling_target")
    with on_dask(dask, n_jobs) if dask else contextlib.nullcontext() as executor:
        study = extract_to(
            folder,
            images,
            regions_on,
            form=f".{options['form']}",
            strategy=strategy_of(options["stat"]),
            executor=executor,
            n_jobs=None if dask else n_jobs,
            **asked,
            **{name: options[name] for name in once},
        )
    echo_study(study, "images")
