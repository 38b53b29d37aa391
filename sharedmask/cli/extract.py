"""``sharedmask extract``: signals of regions, for one image or many.

Covers: its options. Does not cover: what all verbs share (``base``), any of the work.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from sharedmask.cli.base import (
    CANNOT_CREATE,
    LAST_TAKEN,
    Verb,
    cache_dir_option,
    cleaning_options,
    commands,
    connectivity_options,
    denoise_of,
    denoise_options,
    echo,
    echo_study,
    folder_options,
    image_options,
    is_given,
    memory_of,
    options,
    region_options,
    strategy_of,
    with_settings,
)

style_options = options(
    click.option("--no-header", is_flag=True, help="No names in tables."),
    click.option("--precision", type=click.IntRange(1, 17), metavar="N", help="Digits; default: all."),
    click.option("--transpose", is_flag=True, help="A row per region instead of a column."),
)


def check_output(output: str) -> None:
    """Learn before the work that its result has no place."""
    if output == "-":
        if not sys.__stdout__:
            _refuse("-o -: standard output is closed")
    elif not _is_writable(folder := os.path.dirname(output) or "."):
        _refuse(f"{output} cannot be created: no folder {folder} to write to")


def check_folder(folder: str) -> None:
    """The same of a folder of results, which is made with those above it."""
    there = os.path.abspath(os.path.expanduser(folder))
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not _is_writable(there):
        _refuse(f"{folder} cannot be created: {there} is no folder to write to")


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def _refuse(said: str) -> NoReturn:
    click.echo(f"sharedmask: {said}", err=True)
    raise click.exceptions.Exit(CANNOT_CREATE)


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
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    help=".tsv, .csv, .txt, .1D, .ptseries.nii, .pconn.nii, .npz, .h5; - is standard output, as is nothing "
    "if that is no terminal.",
)
@click.option("--out-dir", metavar="DIR", help="One file per BOLD, named like it; complete ones are skipped.")
@style_options
@folder_options
@click.option("-j", "--n-jobs", type=int, help="Workers; -1 for all CPUs.  [default: 1]")
@image_options
@cache_dir_option
@cleaning_options
@denoise_options
@connectivity_options
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
    from sharedmask.study.tables import TABLES, holds_regions, split

    given = given_regions(options)
    if out_dir:
        check_folder(out_dir)
    if not output and not out_dir and len(images) == 1 and not sys.stdout.isatty():
        output = "-"
    if bool(output) == bool(out_dir) or (output and len(images) > 1):
        raise click.UsageError("give -o OUT for one BOLD, or --out-dir DIR for any number")
    ending = f".{options['form']}" if out_dir else split(cast(str, output))[1].lower()
    check_form(options["stat"], ending)
    options["connectivity"] = connectivity_of(options, ending)
    options["memory"] = memory_of(no_cache, cache_dir)
    for flag in ("form", "overwrite", "shard", "dask") if output else ():
        if is_given(flag):
            raise click.UsageError(
                f"--{flag.replace('form', 'format')} is for --out-dir, not for -o {output}"
            )
    options["denoise"] = denoised(options, confounds)
    if out_dir:
        begin_workers(images, confounds, **options)
    table = bool(options["stat"]) or output == "-" or holds_regions(ending)
    options["style"] = style_of(options, table and (ending in ("", *TABLES) or output == "-"))
    parts = parts_of(given, options, table)
    with profiled(profile_memory):
        if out_dir:
            study = extract_each(out_dir, list(images), parts, list(confounds), **options)
            echo_study(study, "images")
        else:
            _extract_one(cast(str, output), images[0], parts, list(confounds), **options)


def check_form(stat: str | Sequence[str] | None, form: str) -> None:
    """That a file of this ending holds what is asked for: .npz and .h5 have no tables."""
    from sharedmask.study.tables import holds_regions

    if stat and form and not holds_regions(form):
        stat = stat if isinstance(stat, str) else " ".join(stat)
        raise click.UsageError(f"--stat {stat} gives a table, which goes to .tsv, not to {form}")


def given_regions(options: Mapping[str, Any]) -> Any:
    """What is given of masks, spheres and atlas: one of them, with nothing that belongs to another."""
    given = [options[name] for name in ("mask_list", "masks", "atlas", "sphere") if options[name]]
    if len(given) != 1:
        raise click.UsageError("give one of --mask, --masks, --sphere and --atlas")
    lut, atlas = options["lut"], options["atlas"]
    if lut and len(lut) != len(atlas):
        raise click.UsageError(f"--lut names the labels of an --atlas: {len(lut)} of {len(atlas)} are given")
    if options["sphere"]:
        from sharedmask.regions.spheres import Seeds

        return Seeds.of(given[0])
    return given[0][0] if options["masks"] and len(given[0]) == 1 else list(given[0])


def begin_workers(images: Sequence[str], confounds: Sequence[str], **asked: Any) -> None:
    """Have what workers come from begin while all else is imported and looked at, if there will be any."""
    from sharedmask.study import executors

    if len(images) > 1 and not asked["dask"]:
        executors.begin(asked["n_jobs"], executors.preloaded(cleans(asked | {"confounds": confounds})))


def cleans(options: Mapping[str, Any]) -> bool:
    """Whether signals are cleaned."""
    from sharedmask.compute.cleaning import is_cleaning

    return bool(options["denoise"]) or is_cleaning({**options, "confounds": options["confounds"] or None})


def denoised(options: dict[str, Any], confounds: Sequence[str]) -> Any:
    """What is asked for of fMRIPrep's confounds, taken out of the options; not beside other tables."""
    denoise = denoise_of(options)
    if denoise and confounds:
        raise click.UsageError(
            "--confounds are tables of your own: leave out --denoise-strategy and its like"
        )
    return denoise


def connectivity_of(options: dict[str, Any], ending: str) -> Sequence[str]:
    """The measures that are asked for; correlations are what a file of a matrix holds unless one is."""
    kinds: Sequence[str] = options["connectivity"]
    if ending != ".pconn.nii":
        return kinds
    if len(kinds) > 1:
        raise click.UsageError(f"{ending} holds one matrix: give one --connectivity")
    return kinds or ("correlation",)


def style_of(options: dict[str, Any], table: bool) -> Any:
    """How tables are written, taken out of the options."""
    from sharedmask.study.tables import Style

    header, precision, transpose = (options.pop(name) for name in ("no_header", "precision", "transpose"))
    style = Style(not header, precision, transpose)
    if style != Style() and not table:
        raise click.UsageError("--no-header, --precision and --transpose are for tables: give --stat")
    return style


def _regions_on(
    given: Any, atlas: str | None, lut: str | None, grid: Any, *, labels: Any, target: Any, weighted: bool
) -> Any:
    """The regions asked for, on a grid."""
    from sharedmask.regions.regions import Regions
    from sharedmask.regions.spheres import Seeds
    from sharedmask.spaces.grid import box_of

    if isinstance(given, Seeds):
        return given.on(box_of(grid, "a sphere"))
    if atlas is None:
        return Regions.from_any(given, grid, resampling_target=target)
    make = Regions.from_maps if weighted else partial(Regions.from_labels, labels=labels)
    return make(atlas, grid, lut=lut, resampling_target=target)


def parts_of(masks: Any, options: Mapping[str, Any], table: bool, labels: Any = None) -> Any:
    """What is written of each image: tables, or the series of all voxels."""
    from sharedmask.compute.connectivity import check_matrices
    from sharedmask.compute.request import checked_strategy, is_weighted
    from sharedmask.study.atlases import Atlas, distinct
    from sharedmask.study.completion import stamp_of
    from sharedmask.study.output import Parts
    from sharedmask.study.tables import Style

    atlas, lut, target = (options[name] for name in ("atlas", "lut", "resampling_target"))
    strategy = checked_strategy(strategy_of(options["stat"])) if table else None
    kinds = check_matrices(options["connectivity"], options["fisher_z"], table)
    given = list(masks or ()) if isinstance(masks, Sequence) and not isinstance(masks, str) else [masks]
    files = [*given, *atlas, *lut]
    known = all(isinstance(one, str) for one in files)
    stamp = stamp_of(repr((len(given), len(atlas), labels, target)), files) if known else ""
    regions_on = partial(_regions_on, labels=labels, target=target, weighted=is_weighted(strategy))
    if len(atlas) < 2:
        makers = {"": partial(regions_on, masks, next(iter(atlas), None), next(iter(lut), None))}
    else:
        named = distinct(Atlas.at(*pair) for pair in zip_longest(atlas, lut))
        makers = {
            name: partial(regions_on, None, str(one.image), None if one.lut is None else str(one.lut))
            for name, one in named.items()
        }
    return Parts(makers, strategy, kinds, options["fisher_z"], options.get("style", Style()), stamp)


def _asked(options: dict[str, Any], confounds: list[str]) -> dict[str, Any]:
    """What is asked of each image, as :func:`sharedmask.extract` takes it."""
    from sharedmask.compute.request import Parameters

    asked = {name: value for name, value in options.items() if name in Parameters.__annotations__}
    return asked | {"confounds": confounds or None, "progress": sys.stderr.isatty()}


def _check_places(targets: dict[str, Any], parts: Any, confounds: list[str], options: dict[str, Any]) -> None:
    """Refuse to write over what is read, or where it would be read as an image's sidecar."""
    from sharedmask.sources.sidecar import own_sidecar, sidecars
    from sharedmask.study.output import check_places

    beside = (path for image in map(Path, targets) for path in (own_sidecar(image), *sidecars(image)))
    denoised = bool(options.get("denoise"))
    written = {image: parts.planned(path, denoised) for image, path in targets.items()}
    check_places(written, [*targets, *beside, *confounds, *options["lut"]])


def _extract_one(output: str, bold: str, parts: Any, confounds: list[str], **options: Any) -> None:
    from sharedmask.image.extraction import Extraction
    from sharedmask.sources.opening import open_source
    from sharedmask.study.tables import series_writer

    check_output(output)
    if output == "-" and parts.connectivity:
        raise click.UsageError("-o - has no room for matrices")
    if output == "-" and parts.count > 1:
        raise click.UsageError(f"-o - has room for one table, and {parts.count} are asked for")
    if parts.strategy is None:
        series_writer(output)
    if output != "-":
        _check_places({bold: output}, parts, confounds, options)
    denoising = options["denoise"] and options["denoise"].of_image(bold)
    asked = Extraction.prepared(
        bold,
        parts.regions_on,
        options["smoothing_fwhm"],
        strategy=parts.strategy,
        **(_asked(options, confounds) | (denoising.cleaning if denoising else {})),
    )
    if asked.source.ndim == 3 and click.get_current_context().meta.get(LAST_TAKEN) == bold:
        raise click.UsageError(f"Missing argument 'BOLD...': {bold}, the last mask, is one volume")
    regions, start = asked.request.regions, time.monotonic()
    signals = asked.run(options["memory_limit"], options["memory"])
    parts.write(output, signals, open_source(bold), denoising, options["t_r"])
    took = time.monotonic() - start
    echo(f"{bold}: {len(regions)} regions x {asked.source.n_timepoints} volumes in {took:.1f} s")


def extract_each(folder: str, images: list[str], parts: Any, confounds: list[str], **options: Any) -> Any:
    """One file per image in ``folder``, with the options of ``extract``; what became of them."""
    from sharedmask.study.executors import on_dask
    from sharedmask.study.output import extract_to, outputs
    from sharedmask.system.process import effective_n_jobs

    _check_places(outputs(images, folder, f".{options['form']}"), parts, confounds, options)
    asked, dask = _asked(options, confounds), options["dask"]
    n_jobs = asked.pop("n_jobs")
    once = ("store", "denoise", "overwrite", "shard", "memory", "memory_limit", "smoothing_fwhm")
    with on_dask(dask, effective_n_jobs(n_jobs)) if dask else contextlib.nullcontext() as executor:
        return extract_to(
            folder,
            images,
            parts,
            form=f".{options['form']}",
            strategy=parts.strategy,
            executor=executor,
            n_jobs=None if dask else n_jobs,
            resampling_target=options["resampling_target"],
            **asked,
            **{name: options.get(name) for name in once},
        )
