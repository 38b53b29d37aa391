"""The BIDS app: ``sharedmask-bids BIDS_DIR OUT_DIR participant``.

Covers: the flags that users of BIDS apps type, and what they mean here. Does not cover: any of the
work (``study.dataset``), exit codes (``base``).

Exit code 1 means that some runs failed; ``OUT_DIR/.sharedmask/failed`` has a file for each.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sharedmask._version import __version__
from sharedmask.cli.base import (
    CONTEXT,
    Verb,
    Yielding,
    connectivity_options,
    denoise_of,
    denoise_options,
    echo_study,
    filter_options,
    is_given,
    run_program,
    strategy_of,
    t_r_option,
)
from sharedmask.cli.extract import check_folder
from sharedmask.errors import ParameterError
from sharedmask.remote.addresses import url_of
from sharedmask.system.inputs import read_json

_UNKNOWN_LEVEL = 17


def main() -> None:
    """The program ``sharedmask-bids``."""
    run_program(app)


@click.command(cls=Verb, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="sharedmask-bids")
@click.argument("bids_dir")
@click.argument("out_dir")
@click.argument("level", metavar="{participant,group}")
@click.option("--participant-label", "sub", multiple=True, metavar="L...", help="With or without sub-.")
@click.option("--session-label", "--session-id", "ses", multiple=True, metavar="L...")
@click.option("-t", "--task-id", "--task-label", "task", multiple=True, metavar="L...")
@click.option("--run-label", "run", multiple=True, metavar="L...")
@click.option("--space", multiple=True, metavar="L...", help="As MNI152NLin2009cAsym.")
@click.option(
    "--file-format",
    type=click.Choice(["nifti", "cifti"]),
    default="nifti",
    show_default=True,
    help="cifti: ..._bold.dtseries.nii.",
)
@click.option("--bids-filter-file", metavar="JSON", help='As {"bold": {"task": "rest"}}.')
@click.option(
    "--atlases", multiple=True, metavar="A...", help="Label images, or names as Schaefer2018:400,7."
)
@click.option("--atlases-dir", multiple=True, metavar="DIR", help="Of ..._atlas-A_dseg.nii.gz, .dlabel.nii.")
@click.option(
    "--download",
    is_flag=True,
    help="Have templateflow get atlases by name that are not here; else nothing is downloaded.",
)
@click.option(
    "--stat",
    cls=Yielding,
    multiple=True,
    default=("mean",),
    show_default="mean",
    metavar="NAME...",
    help="As in sharedmask extract; several give a table each.",
)
@click.option("--min-coverage", type=float, default=0.5, show_default=True, help="Less: n/a.")
@click.option("--drop-empty", is_flag=True, help="No columns of n/a for regions below --min-coverage.")
@click.option("--voxels", is_flag=True, help="The series of all voxels, as .h5, instead of --stat.")
@click.option("--format", "form", type=click.Choice(["tsv", "parquet"]), default="tsv", show_default=True)
@click.option(
    "--surface-mesh",
    "meshes",
    multiple=True,
    metavar="GII...",
    help="hemi-L and hemi-R .surf.gii, inflated or flat: pages of --file-format cifti show regions on them.",
)
@click.option("--no-reports", is_flag=True, help="No HTML pages, of runs or of the study.")
@connectivity_options
@denoise_options
@filter_options
@t_r_option
@click.option("--dry-run", is_flag=True, help="Print what would be read and written, and what is wrong.")
@click.option(
    "--nprocs", "--nthreads", "--n-cpus", "-j", "--n-jobs", "n_jobs", type=int, help="Runs at a time."
)
@click.option("--low-mem", is_flag=True, help="One run at a time.")
@click.option("--mem", "--mem-mb", "mem", metavar="SIZE", help="For all runs at work; a number is MB.")
@click.option("--output-layout", type=click.Choice(["bids", "legacy"]), default="bids", show_default=True)
@click.option("--overwrite", is_flag=True, help="Do complete runs again.")
@click.option("--shard", metavar="I/N", help="The I-th of N parts of the runs, for array jobs.")
@click.option("--stop-on-first-crash", is_flag=True)
def app(
    bids_dir: str,
    out_dir: str,
    level: str,
    atlases: tuple[str, ...],
    atlases_dir: tuple[str, ...],
    bids_filter_file: str | None,
    download: bool,
    file_format: str,
    output_layout: str,
    **options: Any,
) -> None:
    """Write the signals of atlas regions of all preprocessed runs below BIDS_DIR to OUT_DIR."""
    if level not in ("participant", "group"):
        click.echo(f"sharedmask: {level!r} is no analysis level: participant or group", err=True)
        raise click.exceptions.Exit(_UNKNOWN_LEVEL)
    out = Path(out_dir) if output_layout == "bids" else Path(out_dir) / "sharedmask"
    if level == "group":
        from sharedmask.study.group import summarise_group
        from sharedmask.study.summary import summarise, write_quality

        if other := set(options["connectivity"]) - {"tangent"}:
            raise click.UsageError(f"the group level makes tangent connectivity: leave out {min(other)}")
        written = summarise_group(out, tangent=bool(options["connectivity"]))
        page = (write_quality if options["no_reports"] else summarise)(out)
        click.echo("\n".join(map(str, [page, *written])))
        return
    chosen = [name for name in ("stat", "form", "drop_empty") if is_given(name)]
    if options["voxels"] and chosen:
        flag = {"form": "format"}.get(chosen[0], chosen[0].replace("_", "-"))
        raise click.UsageError(f"--voxels writes the series of all voxels as .h5: leave out --{flag}")
    typed = {key: list(options.pop(key)) for key in ("sub", "ses", "task", "run", "space")}
    # What is typed wins over the file.
    filters = _filter_file(bids_filter_file) | {key: values for key, values in typed.items() if values}
    filters |= {} if file_format == "nifti" else {"file_format": file_format}
    options["denoise_strategy"] = denoise_of(options)
    if options["meshes"] and (file_format != "cifti" or options["no_reports"]):
        raise click.UsageError("--surface-mesh is for pages of --file-format cifti")
    if download and options["dry_run"]:
        raise click.UsageError("--dry-run writes nothing: leave out --download")
    if not options["dry_run"]:
        _begin_workers(**options)
    found = _atlases(bids_dir, atlases, atlases_dir, filters, download)
    _participants(bids_dir, out, found, filters, options)


def _begin_workers(n_jobs: int | None, low_mem: bool, **options: Any) -> None:
    """Have what workers come from begin while all else is imported and looked at, if there will be any."""
    from sharedmask.compute.cleaning import is_cleaning
    from sharedmask.study import executors

    cleans = bool(options["denoise_strategy"]) or is_cleaning(options)
    executors.begin(1 if low_mem else n_jobs, executors.preloaded(cleans, bool(options["connectivity"])))


def _filter_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = read_json(path, "utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ParameterError(f"{path} holds no BIDS filters: {why}") from error
    # Sections of other kinds of images are for other programs.
    are_sections = content and all(isinstance(one, dict) for one in content.values())
    asked = content.get("bold", {} if are_sections else content)
    if not isinstance(asked, dict):
        raise ParameterError(f"{path} holds no BIDS filters: bold is no JSON object")
    if unlike := [key for key, one in asked.items() if isinstance(one, dict)]:
        raise ParameterError(f"{path}: {unlike[0]} is an object: give a value, or a list of values")
    return asked


def _atlases(
    dataset: str, given: Sequence[str], folders: Sequence[str], filters: dict[str, Any], download: bool
) -> list[Any]:
    """The atlases by file, or by name: those in the runs' space; each run takes the nearest resolution."""
    from sharedmask.study.atlases import find_atlas

    if not given:
        raise click.UsageError("--atlases: give at least one")
    if all(map(_is_file, given)):
        return [find_atlas(name) for name in given]
    space = _space_of_runs(dataset, filters)
    found = [find_atlas(name, folders, space, download=download) for name in given]
    for name, atlas in zip(given, found, strict=True):
        if not _is_file(name):
            for image in atlas.resolutions or (atlas.image,):
                click.echo(f"sharedmask: atlas {name}: {image}", err=True)
    return found


def _is_file(atlas: str) -> bool:
    return url_of(atlas) is not None or Path(atlas).is_file()


def _space_of_runs(dataset: str, filters: dict[str, Any]) -> str | None:
    """Their space, if they have one.

    Raises DatasetError, NoInputError: see ``find_runs``; this comes before what is wrong with an atlas.
    """
    from sharedmask.study.bids import find_runs, space_of

    spaces = {space_of(run.name) for run in find_runs(dataset, filters)}
    return spaces.pop() if len(spaces) == 1 else None


def _participants(
    bids_dir: str, out: Path, atlases: list[Any], filters: dict[str, Any], options: dict[str, Any]
) -> None:
    from sharedmask.study.analysis import Outputs
    from sharedmask.study.dataset import analyse

    written = ("min_coverage", "form", "voxels", "drop_empty", "connectivity", "fisher_z", "meshes")
    outputs = Outputs(
        statistic=strategy_of(options.pop("stat")),
        reports=not options.pop("no_reports"),
        **{name: options.pop(name) for name in written},
    )
    running = {name: options.pop(name) for name in ("n_jobs", "overwrite", "stop_on_first_crash")}
    running |= {"n_jobs": 1} if options.pop("low_mem") else {}
    running |= {"memory_limit": _memory(options.pop("mem")), "progress": sys.stderr.isatty()}
    if options.pop("dry_run"):
        _echo_manifests(bids_dir, out, atlases, outputs, filters=filters, **options)
    else:
        check_folder(str(out))
        study = analyse(bids_dir, out, atlases, outputs, filters=filters, **running, **options)
        echo_study(study, "runs")


def _echo_manifests(*study: Any, **options: Any) -> None:
    from sharedmask.study.dataset import draw_manifests

    runs = failing = 0
    for manifest in draw_manifests(*study, **options):
        click.echo("\n".join(manifest.lines()) + "\n")
        runs, failing = runs + 1, failing + bool(manifest.problems)
    click.echo(f"{runs} runs, {failing} of them would fail")
    if failing:
        raise click.exceptions.Exit(1)


def _memory(size: str | None) -> int | str | None:
    """BIDS apps take megabytes; we also take ``8G``."""
    with suppress(ValueError, TypeError):
        return int(float(size or "")) * 10**6
    return size
