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
    folder_options,
    given_regions,
    image_options,
    is_given,
    memory_of,
    region_options,
    regions_maker,
    strategy_of,
    with_settings,
)


@contextlib.contextmanager
def profiled(path: str | None) -> Iterator[None]:
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
@region_options
@click.option("-o", "--output", metavar="OUT", help=".tsv, .npz, .h5; - is standard output.")
@click.option("--out-dir", metavar="DIR", help="One file per BOLD, named like it; complete ones are skipped.")
@folder_options
@click.option("-j", "--n-jobs", type=int, help="Workers; -1 for all CPUs.  [default: 1]")
@image_options
@cache_dir_option
@cleaning_options
@with_settings
def extract(
    images: tuple[str, ...],
    output: str | None,
    out_dir: str | None,
    cache_dir: str | None,
    no_cache: bool,
    profile_memory: str | None,
    confounds: tuple[str, ...],
    **options: Any,
) -> None:
    """Extract the signals of regions from each BOLD, in one pass."""
    given = given_regions(options)
    if bool(output) == bool(out_dir) or (output and len(images) > 1):
        raise click.UsageError("give -o OUT for one BOLD, or --out-dir DIR for any number")
    ending = f".{options['form']}" if out_dir else os.path.splitext(cast(str, output))[1].lower()
    check_form(options["stat"], ending)
    options["memory"] = memory_of(no_cache, cache_dir)
    for flag in ("form", "overwrite", "shard", "dask") if output else ():
        if is_given(flag):
            raise click.UsageError(
                f"--{flag.replace('form', 'format')} is for --out-dir, not for -o {output}"
            )
    regions_on = regions_maker(given, options["atlas"], options["lut"], options["resampling_target"])
    with profiled(profile_memory):
        if out_dir:
            study = extract_each(out_dir, list(images), regions_on, list(confounds), **options)
            echo_study(study, "images")
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


def extract_each(
    folder: str, images: list[str], regions_on: Callable[[Any], Any], confounds: list[str], **options: Any
) -> Any:
    """One file per image in ``folder``, with the options of ``extract``; what became of them."""
    from sharedmask.study.executors import on_dask
    from sharedmask.study.output import extract_to
    from sharedmask.system.process import effective_n_jobs

    asked, dask = _asked(options, confounds), options["dask"]
    n_jobs = asked.pop("n_jobs")
    once = ("store", "overwrite", "shard", "memory", "memory_limit", "smoothing_fwhm", "resampling_target")
    with on_dask(dask, effective_n_jobs(n_jobs)) if dask else contextlib.nullcontext() as executor:
        return extract_to(
            folder,
            images,
            regions_on,
            form=f".{options['form']}",
            strategy=strategy_of(options["stat"]),
            executor=executor,
            n_jobs=None if dask else n_jobs,
            **asked,
            **{name: options.get(name) for name in once},
        )
