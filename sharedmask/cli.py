"""The verbs: ``sharedmask extract | info | demo | ls | cache | gc``.

Covers: options, exit codes, what is printed where. Does not cover: any of the work.

Data go to files or standard output, everything else to standard error. Exit codes follow the BIDS
execution specification: 0 done, 64 wrong usage, 65 bad data, 66 input missing, 73 output cannot be
made, 74 input or output failed, 75 try again with more memory or later, 1 anything else.
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
    MemoryLimitError,
    MissingFileError,
    ParameterError,
    SegmentError,
    SharedMaskError,
    WorkerError,
)

_EXIT_CODES: list[tuple[type[BaseException] | tuple[type[BaseException], ...], int]] = [
    (click.UsageError, 64),
    (ParameterError, 64),
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


class _Verb(click.Command):
    """A command whose option ``--mask`` takes several values, as in ``--mask a.nii b.nii -o out``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeated: list[str] = []
        within = False
        for arg in args:
            if arg.startswith("-") and arg != "-":
                within = arg == "--mask"
            elif within and repeated[-1] != "--mask":
                repeated.append("--mask")
            repeated.append(arg)
        return super().parse_args(ctx, repeated)


class _Verbs(click.Group):
    """Hands errors of ours past click, which takes each EOFError, as of a truncated image, for Ctrl-D."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SharedMaskError as error:
            return error


@click.group(
    cls=_Verbs,
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


def main() -> None:
    """Run the command line; one line per error, and its exit code."""
    debug = "--debug" in sys.argv  # wherever it stands
    try:
        code = _run([arg for arg in sys.argv[1:] if arg != "--debug"])
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


def _run(arguments: list[str]) -> Any:
    result = commands(arguments, standalone_mode=False)
    if isinstance(result, SharedMaskError):
        raise result
    return result


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _with_settings(verb: F) -> F:
    """Options that set knobs while a verb runs, before the environment and the configuration file."""

    @functools.wraps(verb)
    def run(config: str | None, set_knobs: tuple[str, ...], **options: Any) -> Any:
        from sharedmask import settings

        given = settings.of_texts(set_knobs)
        given |= {"profile": options.pop("profile"), "log_memory": options.pop("log_memory") or None}
        with settings.using(config=config, **given) as knobs, _logging(knobs.log_memory):
            return verb(**options)

    return cast(F, _settings(run))


_settings = _options(
    click.option("--config", metavar="FILE", help="Settings in TOML, instead of the usual file."),
    click.option("--profile", type=click.Choice(["small", "medium", "large", "auto", "slurm"])),
    click.option("--set", "set_knobs", metavar="NAME=VALUE", multiple=True, help="Any other setting."),
    click.option("--log-memory", is_flag=True, help="One line per operation: memory projected and in use."),
)


@contextlib.contextmanager
def _logging(on: bool) -> Iterator[None]:
    """What monitors log, on standard error."""
    if not on:
        yield
        return
    import logging

    logger, handler = logging.getLogger("sharedmask.monitor"), logging.StreamHandler()
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

_cache_dir = click.option(
    "--cache-dir", metavar="DIR", help="Where results are kept for the next time; default: the setting."
)


@commands.command(cls=_Verb)
@click.argument("bold")
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
@click.option("-o", "--output", required=True, metavar="OUT", help=".tsv, .npz, .h5; - is standard output.")
@click.option("-j", "--n-jobs", type=int, default=1, show_default=True, help="Workers; -1 for all CPUs.")
@click.option("--smoothing-fwhm", type=float, metavar="MM", help="Smooth BOLD first.")
@click.option(
    "--resampling-target",
    type=click.Choice(["data", "mask"]),
    help="Resample masks on other grids to BOLD (data), or BOLD to the masks.",
)
@click.option("--nan-policy", type=click.Choice(["zero", "propagate", "raise", "omit"]))
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@_cache_dir
@click.option("--no-cache", is_flag=True, help="Compute, and keep nothing, whatever the settings say.")
@click.option(
    "--profile-memory", metavar="FILE", help="Memory over time, for `mprof plot`, and its picture (.png)."
)
@_cleaning
@_with_settings
def extract(
    bold: str,
    mask_list: tuple[str, ...],
    masks: str | None,
    atlas: str | None,
    lut: str | None,
    stat: str | None,
    output: str,
    confounds: tuple[str, ...],
    cache_dir: str | None,
    no_cache: bool,
    profile_memory: str | None,
    **parameters: Any,
) -> None:
    """Extract the signals of regions from BOLD, in one pass."""
    from sharedmask.extraction import extract as extract_signals
    from sharedmask.regions import Regions
    from sharedmask.sources import open_source
    from sharedmask.writing import series_writer, write_series, write_table

    given = [what for what in (list(mask_list), masks, atlas) if what]
    if len(given) != 1:
        raise click.UsageError("give one of --mask, --masks and --atlas")
    if lut and not atlas:
        raise click.UsageError("--lut names the labels of an --atlas")
    as_table = stat is not None or output == "-" or output.endswith(".tsv")
    _check_output(output)
    if not as_table:
        series_writer(output)
    source = open_source(bold)
    target = parameters["resampling_target"]
    grid = _grid(source)
    if atlas:
        regions = Regions.from_labels(atlas, grid, lut=lut, resampling_target=target)
    else:
        regions = Regions.from_any(given[0], grid, resampling_target=target)
    start = time.monotonic()
    with _profiled(profile_memory):
        signals = extract_signals(
            source,
            regions,
            strategy=(stat or "mean").replace("-", "_") if as_table else None,
            confounds=list(confounds) or None,
            memory=False if no_cache else cache_dir,
            progress=sys.stderr.isatty(),
            **parameters,
        )
    if as_table:
        write_table(output, signals, regions.names)
    else:
        series = signals.values() if isinstance(signals, dict) else signals
        write_series(output, dict(zip(regions.names, series, strict=True)))
    took = time.monotonic() - start
    _say(f"{bold}: {len(regions)} regions x {source.n_timepoints} volumes in {took:.1f} s")


def _grid(source: Any) -> Any:
    from sharedmask.regions import Grid

    return Grid(source.shape[:3], source.affine)


def _check_output(output: str) -> None:
    """Learn before the work that its result has no place."""
    folder = os.path.dirname(output) or "."
    if output == "-" or (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        return
    click.echo(f"sharedmask: {output} cannot be created: no folder {folder} to write to", err=True)
    raise click.exceptions.Exit(_CANNOT_CREATE)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)


@commands.command()
@click.argument("bold")
@click.option("--mask-img", metavar="M", help="Count the voxels inside it only.")
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@_with_settings
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


@commands.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--memory-limit", metavar="SIZE", help="What all images may take together, for example 64G.")
@click.option("--idle", metavar="TIME", help="End after this long without a client: 90s, 30m, 2h.")
@click.option(
    "--store", type=click.Choice(["auto", "shm", "memfd", "disk"]), default="auto", show_default=True
)
@_with_settings
def serve(images: tuple[str, ...], memory_limit: str | None, idle: str | None, store: Any) -> None:
    """Load images for other programs, each once: SharedImage.connect(IMAGE) finds them."""
    import signal

    from sharedmask.service import Coordinator

    coordinator = Coordinator(memory_limit=memory_limit, idle=_seconds(idle), store=store)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: coordinator.stop())
    with coordinator:
        for image in images:
            coordinator.open(os.path.abspath(os.path.expanduser(image)))
        click.echo(f"serving, pid {os.getpid()}, images loaded: {len(images)}")
        sys.stdout.flush()
        coordinator.wait()


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        return float(number) * units[unit]
    except ValueError:
        raise click.UsageError(f"--idle {text}: write 90s, 30m or 2h") from None


@commands.command("ls")
def list_images() -> None:
    """List the shared images of living processes, and the rows that are kept on disk."""
    from sharedmask import disk, registry, wire
    from sharedmask.amounts import mib
    from sharedmask.image import SharedImage

    held: dict[str, int] = {}
    connection = wire.connect()
    if connection is not None:
        with connection:
            held = {image["token"]: image["clients"] for image in wire.ask(connection, "list")["images"]}
    head = ("name", "shape", "size", "store", "owner", "age", "clients")
    lines = [head]
    for entry in registry.entries():
        shape, size, store, clients = "loading", "", "", str(held.get(entry.token, ""))
        if entry.handle is not None:
            size, store = mib(entry.handle.nbytes), entry.handle.store
            try:
                image = SharedImage.attach(entry.handle)
                shape, size, store = "x".join(map(str, image.shape)), mib(image.nbytes), image.store[0]
            except SharedMaskError:
                shape = "output"
        age = f"{time.time() - entry.created:.0f} s"
        lines.append((entry.label, shape, size, store, str(entry.pid), age, clients))
    for kept in disk.entries():
        age = f"{time.time() - kept.used:.0f} s"
        lines.append((kept.label, "kept", mib(kept.nbytes), "disk", "", age, ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


@commands.command()
@click.argument("name")
def drop(name: str) -> None:
    """Have the coordinator close the image NAME; programs that use it keep what they have."""
    from sharedmask import wire

    connection = wire.connect()
    if connection is None:
        raise click.UsageError("no coordinator is running: an image goes with the process that owns it")
    with connection:
        if not wire.ask(connection, "drop", name=name)["dropped"]:
            raise ParameterError(f"the coordinator holds no image {name!r}: `sharedmask ls` lists them")


@commands.command()
def doctor() -> None:
    """Test what this machine can do: stores, attaching, limits."""
    from sharedmask.doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(f"{'ok ' if finding.ok else 'NO '} {finding.what}: {finding.detail}")
    if not all(finding.ok for finding in findings if finding.needed):
        raise SharedMaskError("this machine cannot share images")


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


@commands.command()
@click.option("--disk", "kept", is_flag=True, help="And the rows kept on disk that nobody uses now.")
def gc(kept: bool) -> None:
    """Remove the shared memory of processes that died, and the files they left half written."""
    from sharedmask import disk, registry

    removed = registry.reap() + disk.sweep()
    removed += disk.remove_unused() if kept else []
    for name in removed:
        click.echo(f"removed {name}")
    _say(f"{len(removed)} segments and files removed")


@commands.command()
@click.argument("action", type=click.Choice(["stats", "clear"]))
@_cache_dir
def cache(action: str, cache_dir: str | None) -> None:
    """Tell what is in the cache of results and how it was used, or empty it."""
    from sharedmask.cache import Cache

    found = Cache.of(cache_dir)
    if found is None:
        raise click.UsageError("there is no cache: give --cache-dir, or set SHAREDMASK_CACHE_DIR")
    if action == "clear":
        n_entries = found.clear()
        _say(f"{n_entries} entries removed from {found.folder}")
        return
    stats = found.stats()
    rows = {"folder": stats.folder, "entries": stats.n_entries, "bytes": stats.nbytes, "limit": stats.limit}
    for name, value in (rows | vars(stats.counts)).items():
        click.echo(f"{name.replace('_', ' '):<13}  {value}")
