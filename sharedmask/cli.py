"""The verbs on images: ``sharedmask extract | network | info | demo | frames``.

Covers: options, exit codes, what is printed where. Does not cover: any of the work.

Data go to files or standard output, everything else to standard error. Exit codes follow the BIDS
execution specification: 0 done, 16 no BIDS data set, 18 nothing selected, 64 wrong usage, 65 bad
data, 66 input missing, 73 output cannot be made, 74 input or output failed, 75 try again with more
memory or later, 1 anything else, or some of many items failed.
"""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from sharedmask import __version__
from sharedmask.errors import (
    DamagedImageError,
    DatasetError,
    MemoryLimitError,
    MissingFileError,
    NoInputError,
    ParameterError,
    SegmentError,
    SharedMaskError,
    WorkerError,
)

_EXIT_CODES: list[tuple[type[BaseException] | tuple[type[BaseException], ...], int]] = [
    (click.UsageError, 64),
    (ParameterError, 64),
    (DatasetError, 16),
    (NoInputError, 18),
    (MissingFileError, 66),
    (DamagedImageError, 65),
    ((MemoryLimitError, SegmentError, WorkerError, MemoryError), 75),
    (SharedMaskError, 65),
    (FileNotFoundError, 66),
    (OSError, 74),
]
_CANNOT_CREATE = 73
_INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])


class Verb(click.Command):
    """A command whose repeatable options take several values, as in ``--mask a.nii b.nii -o out``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {
            name for option in self.params if getattr(option, "multiple", False) for name in option.opts
        }
        repeated: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-") and arg != "-":
                option = arg.replace("_", "-") if arg.startswith("--") else arg
            elif option in several and repeated[-1].replace("_", "-") != option:
                repeated.append(option)
            repeated.append(arg)
        return super().parse_args(ctx, repeated)


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="sharedmask")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def commands() -> None:
    """Mask one large fMRI run with many regions, from one copy in memory."""


def run(command: click.Command) -> None:
    """Run a command line; one line per error, and its exit code."""
    debug = "--debug" in sys.argv  # wherever it stands
    try:
        code = command([arg for arg in sys.argv[1:] if arg != "--debug"], standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("sharedmask: interrupted", err=True)
        code = _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"sharedmask: {' '.join(message.split()) or type(error).__name__}", err=True)
        code = next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)
    sys.exit(code)


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def with_settings(verb: F) -> F:
    """Options that set knobs while a verb runs, before the environment and the configuration file."""

    @functools.wraps(verb)
    def run(config: str | None, set_knobs: tuple[str, ...], **options: Any) -> Any:
        from sharedmask import settings

        given = settings.of_texts(set_knobs)
        given |= {"profile": options.pop("profile"), "log_memory": options.pop("log_memory") or None}
        with (
            settings.using(config=config, **given) as knobs,
            logging_to_stderr(knobs.log_memory, "sharedmask.monitor"),
        ):
            return verb(**options)

    return cast(F, _settings(run))


_settings = _options(
    click.option("--config", metavar="FILE", help="Settings in TOML, instead of the usual file."),
    click.option("--profile", type=click.Choice(["small", "medium", "large", "auto", "slurm"])),
    click.option("--set", "set_knobs", metavar="NAME=VALUE", multiple=True, help="Any other setting."),
    click.option("--log-memory", is_flag=True, help="One line per operation: memory projected and in use."),
)


@contextlib.contextmanager
def logging_to_stderr(on: bool, name: str) -> Iterator[None]:
    """What the logger ``name`` says, on standard error."""
    if not on:
        yield
        return
    import logging

    logger, handler = logging.getLogger(name), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _profiled(path: str | None) -> Iterator[None]:
    """Write what the ``with`` block held over time to ``path``, and its picture beside it."""
    if path is None:
        yield
        return
    from sharedmask.monitor import MemoryMonitor

    picture = Path(path).with_suffix(".png")
    if Path(path) == picture:
        raise click.UsageError(f"--profile-memory {path}: that is the picture's name; write mem.dat")
    _check_output(path)
    with MemoryMonitor(interval=0.02) as monitor:
        yield
    monitor.write(path)
    try:
        monitor.picture(picture)
    except ImportError:
        click.echo(f"sharedmask: no picture {picture}: matplotlib is not installed", err=True)


_cleaning = _options(
    click.option("--standardize", type=click.Choice(["zscore_sample", "psc"]), help="After all other steps."),
    click.option("--detrend", is_flag=True, help="Remove linear trends."),
    click.option("--confounds", metavar="TSV", multiple=True, help="Tables with one row per volume."),
    click.option("--low-pass", type=float, metavar="HZ"),
    click.option("--high-pass", type=float, metavar="HZ"),
    click.option("--t-r", type=float, metavar="S", help="Repetition time; default: the image's."),
)

cache_dir_option = click.option(
    "--cache-dir", metavar="DIR", help="Where results are kept for the next time; default: the setting."
)


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
@_cleaning
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
    options["memory"] = False if no_cache else cache_dir
    regions_on = regions_maker(given[0], atlas, lut, options["resampling_target"])
    with _profiled(profile_memory):
        if out_dir:
            _extract_many(out_dir, list(images), regions_on, list(confounds), **options)
        else:
            _extract_one(cast(str, output), images[0], regions_on, list(confounds), **options)


_MANY_ONLY = ("form", "overwrite", "shard", "dask")


def regions_maker(
    given: Any, atlas: str | None, lut: str | None, target: Any, labels: Any = None
) -> Callable[[Any], Any]:
    """What makes the regions asked for, on the grid that it is given."""

    def regions_on(grid: Any) -> Any:
        from sharedmask.regions import Regions

        if atlas:
            return Regions.from_labels(atlas, grid, lut=lut, labels=labels, resampling_target=target)
        return Regions.from_any(given, grid, resampling_target=target)

    return regions_on


def _extract_one(
    output: str, bold: str, regions_on: Callable[[Any], Any], confounds: list[str], **options: Any
) -> None:
    from sharedmask.extraction import extract as extract_signals
    from sharedmask.sources import open_source
    from sharedmask.writing import series_writer, write_series, write_table

    stat = options.pop("stat")
    as_table = stat is not None or output == "-" or output.endswith(".tsv")
    _check_output(output)
    if not as_table:
        series_writer(output)
    for name in _MANY_ONLY:
        options.pop(name)
    source = open_source(bold)
    regions = regions_on(_grid(source))
    start = time.monotonic()
    signals = extract_signals(
        source,
        regions,
        strategy=strategy_of(stat) if as_table else None,
        confounds=confounds or None,
        progress=sys.stderr.isatty(),
        **options,
    )
    if as_table:
        write_table(output, signals, regions.names)
    else:
        series = signals.values() if isinstance(signals, dict) else signals
        write_series(output, dict(zip(regions.names, series, strict=True)))
    took = time.monotonic() - start
    say(f"{bold}: {len(regions)} regions x {source.n_timepoints} volumes in {took:.1f} s")


def strategy_of(stat: str | None) -> str:
    """The reduction that ``--stat`` asks for."""
    return (stat or "mean").replace("-", "_")


def _extract_many(
    folder: str, images: list[str], regions_on: Callable[[Any], Any], confounds: list[str], **options: Any
) -> None:
    from sharedmask.cohort import on_dask
    from sharedmask.folders import extract_to
    from sharedmask.pool import effective_n_jobs

    stat, dask = options.pop("stat"), options.pop("dask")
    n_jobs = effective_n_jobs(options.pop("n_jobs"))
    with on_dask(dask, n_jobs) if dask else contextlib.nullcontext() as executor:
        study = extract_to(
            folder,
            images,
            regions_on,
            form=f".{options.pop('form')}",
            strategy=strategy_of(stat),
            confounds=confounds or None,
            executor=executor,
            n_jobs=None if dask else n_jobs,
            progress=sys.stderr.isatty(),
            **options,
        )
    tell_study(study, "images")


def tell_study(study: Any, what: str) -> None:
    """Each failure on a line, what was done, and exit code 1 if something failed."""
    for key, error in study.errors.items():
        click.echo(f"sharedmask: {key}: {' '.join(str(error).split())}", err=True)
    done = f"{len(study.complete)} {what} complete, {len(study.skipped)} were already"
    click.echo(f"{done}, {len(study.errors)} failed")
    if study.errors:
        raise click.exceptions.Exit(1)


def _grid(source: Any) -> Any:
    from sharedmask.grids import Grid

    return Grid(source.shape[:3], source.affine)


def _check_output(output: str) -> None:
    """Learn before the work that its result has no place."""
    folder = os.path.dirname(output) or "."
    if output == "-" or (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        return
    click.echo(f"sharedmask: {output} cannot be created: no folder {folder} to write to", err=True)
    raise click.exceptions.Exit(_CANNOT_CREATE)


def say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)


@commands.command()
@click.argument("bold")
@click.option("--mask-img", metavar="M", help="Count the voxels inside it only.")
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@with_settings
def info(bold: str, mask_img: str | None, memory_limit: str | None) -> None:
    """Print what BOLD is, what it takes in memory and what may be used."""
    from sharedmask import settings, stores
    from sharedmask.amounts import mib
    from sharedmask.budget import MemoryBudget
    from sharedmask.image import SharedImage

    image = SharedImage(bold, mask_img=mask_img)
    budget = MemoryBudget.here(memory_limit)
    free = stores.free_bytes()
    scaled = image.scaling
    rows = {
        "image": bold,
        "shape": " x ".join(map(str, image.shape)),
        "stored as": f"{image.dtype}, values times {scaled[0]:g} plus {scaled[1]:g}"
        if scaled != (1.0, 0.0)
        else str(image.dtype),
        "repetition time": "unknown" if image.t_r is None else f"{image.t_r:g} s",
        "takes in a store": mib(image.nbytes),
        "store": "{} ({})".format(*image.store),
        "/dev/shm has room for": "unknown" if free is None else mib(free),
        "memory that may be used": f"{mib(budget.limit)} ({budget.reason})",
    }
    rows |= {name: f"{getattr(settings.current(), name)} ({o})" for name, o in settings.origins().items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


@commands.command()
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

    Exit code 1: some lesions failed; OUT/errors.json names them.
    """
    from sharedmask.network import FunctionalNetworkMapper
    from sharedmask.runs import run

    mapper = FunctionalNetworkMapper(**settings).fit(connectome)
    given = lesions[0] if len(lesions) == 1 else list(lesions)
    report = run(given, mapper, out, batch_size=batch_size, resume=resume, progress=sys.stderr.isatty())
    for name, error in report.errors.items():
        click.echo(f"sharedmask: {name}: {' '.join(str(error).split())}", err=True)
    say(f"{len(report.done)} lesions mapped, {len(report.skipped)} done before, {len(report.errors)} failed")
    if report.errors:
        raise click.exceptions.Exit(1)


@commands.command()
@click.argument("bold", required=False)
@click.option("-j", "--n-jobs", type=int, default=20, show_default=True, help="Workers of both ways.")
@click.option("--volumes", type=int, default=168, show_default=True, help="Length of the run that is made.")
def demo(bold: str | None, n_jobs: int, volumes: int) -> None:
    """Extract 20 regions from BOLD, or from a run made for this, beside a NiftiMasker loop."""
    from sharedmask.demo import N_REGIONS, compare

    what = bold or f"a run of {volumes} volumes made for this"
    click.echo(f"{N_REGIONS} regions of {what}; this takes a minute ...")
    found = compare(bold, n_jobs, volumes)
    ways = [("NiftiMasker loop", found.loop), ("sharedmask", found.ours)]
    click.echo(f"\n{'':<18}{'workers':>8}{'seconds':>10}{'peak memory':>14}")
    for name, way in ways:
        click.echo(f"{name:<18}{way.n_jobs:>8}{way.seconds:>10.1f}{way.peak / 2**20:>10,.0f} MiB")
    times, memory = found.loop.seconds / found.ours.seconds, found.loop.peak / found.ours.peak
    click.echo(f"\n{times:.1f} times faster, {memory:.1f} times less memory (PSS of all processes)")
    if not found.same:
        raise SharedMaskError("the signals differ from NiftiMasker's")
    click.echo("all signals are equal to NiftiMasker's, bit for bit")


@commands.group()
def frames() -> None:
    """Runs as data sets of volumes."""


@frames.command()
@click.argument("source", metavar="A")
@click.argument("target", metavar="B")
@click.option("--gzip", "level", type=click.IntRange(0, 9), metavar="LEVEL", help="Compress B, an .h5 file.")
def convert(source: str, target: str, level: int | None) -> None:
    """Write the volumes of A to B, holding one at a time: .nii, .nii.gz and .h5 (NFDH5)."""
    from sharedmask.converting import convert as convert_frames

    _check_output(target)
    compression = None if level is None else "gzip"
    convert_frames(source, target, compression=compression, compression_opts=level)
