"""``sharedmask run``: ``extract`` into a folder, with the flags of memory-efficient pipelines.

Covers: what those flags stand for, choosing subjects and regions by name. Does not cover: the options
that ``extract`` has as well (``base``), the work (``extract``), BIDS (``bids``).

Settings that no flag is about stay as the environment, the configuration file and the profile have them.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import click

from sharedmask.cli.base import (
    Verb,
    cleaning_options,
    commands,
    connectivity_options,
    denoise_options,
    echo_study,
    folder_options,
    image_options,
    logging_to_stderr,
    memory_of,
    region_options,
    with_settings,
)
from sharedmask.cli.cache import tell_cache
from sharedmask.cli.extract import (
    begin_workers,
    check_folder,
    check_form,
    connectivity_of,
    denoised,
    extract_each,
    given_regions,
    parts_of,
    profiled,
    style_of,
    style_options,
)
from sharedmask.errors import NoInputError

_SUBJECT = re.compile(r"(?:^|[_/])(sub-[a-zA-Z0-9]+)")


def gigabytes(text: str) -> int:
    """In bytes."""
    with contextlib.suppress(ValueError, OverflowError):
        if (nbytes := int(float(text) * 2**30)) >= 0:
            return nbytes
    raise click.BadParameter(f"{text} is no number of GB")


@commands.command("run", cls=Verb)
@click.argument("images", nargs=-1, metavar="BOLD...")
@click.option("--subjects", multiple=True, metavar="L...", help="Of the images; with or without sub-.")
@click.option("--rois", "names", multiple=True, metavar="NAME...", help="Of the regions; default: all.")
@region_options
@click.option("--output-dir", default="output", show_default=True, metavar="DIR")
@folder_options
@click.option("--standard", is_flag=True, help="One image at a time, and no cache.")
@click.option(
    "--parallel", "--parallel-subjects", is_flag=True, help="--n-jobs images at a time; else all CPUs."
)
@click.option("-j", "--n-jobs", type=int, help="Images at a time, as far as memory allows; -1 for all CPUs.")
@click.option("--cached", is_flag=True, help="Keep results for the next run, in --cache-dir.")
@click.option("--cache-dir", metavar="DIR", help="Means --cached; default: the setting, else cache.")
@click.option("--clear-cache", is_flag=True, help="Remove our entries in --cache-dir first.")
@click.option("--cache-stats", is_flag=True, help="At the end, print how the cache was used.")
@click.option("--memory-efficient", is_flag=True, help="Hold images in shared memory, on disk if too large.")
@click.option(
    "--memory-threshold",
    "--memmap-threshold",
    type=gigabytes,
    metavar="GB",
    help="Hold larger images on disk.",
)
@click.option("--force-memmap", is_flag=True, help="Hold images on disk; rows stay there for the next run.")
@click.option("--memory-buffer", type=float, metavar="FRACTION", help="Of the limit; stays free.")
@click.option("--max-memory-per-process", type=gigabytes, metavar="GB")
@click.option("--disable-shared-memory", is_flag=True, help="Workers are threads.")
@click.option("--auto-configure", is_flag=True, help="--profile auto: numbers for this machine.")
@click.option("--slurm", is_flag=True, help="--profile slurm: numbers of the job.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
@image_options
@cleaning_options
@denoise_options
@connectivity_options
@style_options
@with_settings
def run_pipeline(
    images: tuple[str, ...],
    subjects: tuple[str, ...],
    confounds: tuple[str, ...],
    profile_memory: str | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Extract the signals of regions from each BOLD, with the flags of memory-efficient pipelines."""
    from sharedmask.system import settings

    check_form(options["stat"], f".{options['form']}")
    check_folder(options["output_dir"])
    _check_together(options)
    options["denoise"] = denoised(options, confounds)
    chosen, knobs = _of_subjects(images, subjects), _knobs(options)
    with settings.using(**knobs):
        begin_workers(chosen, confounds, **options | {"n_jobs": _n_jobs(options)})
    options["style"] = style_of(options, options["form"] == "tsv")
    options["connectivity"] = connectivity_of(options, f".{options['form']}")
    parts = _chosen_parts(options)
    with (
        settings.using(**knobs) as now,
        logging_to_stderr(verbose, "sharedmask"),
        profiled(profile_memory),
        _cache(options, options["cache_dir"] or now.cache_dir or "cache") as memory,
    ):
        options |= {"n_jobs": _n_jobs(options), "store": _store(options), "memory": memory}
        study = extract_each(options["output_dir"], chosen, parts, list(confounds), **options)
    echo_study(study, "images")


def _check_together(options: Mapping[str, Any]) -> None:
    """Refuse flags of which one would have no effect."""
    profile = click.get_current_context().params["profile"]
    if sum(map(bool, (options["auto_configure"], options["slurm"], profile))) > 1:
        raise click.UsageError(
            "--auto-configure, --slurm and --profile are three ways to say one thing: give one"
        )
    against = {"standard": ("parallel", "n_jobs", "cached", "cache_dir"), "no_cache": ("cached", "cache_dir")}
    for name, others in against.items():
        for other in others:
            if options[name] and options[other]:
                flags = (f"--{flag.replace('_', '-')}" for flag in (name, other))
                raise click.UsageError("{} and {} contradict each other: leave out one".format(*flags))


def _of_subjects(images: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """The images of these subjects; each must have one."""
    if not images:
        raise click.UsageError("no BOLD is given")
    if not subjects:
        return list(images)
    found = {image: _SUBJECT.findall(image) for image in images}
    wanted = {f"sub-{subject.removeprefix('sub-')}" for subject in subjects}
    if unknown := wanted - {subject for those in found.values() for subject in those}:
        raise NoInputError(f"no image of {', '.join(sorted(unknown))} among {len(images)}")
    return [image for image, those in found.items() if wanted & set(those)]


def _knobs(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the flags stand for; None, where a flag is not given, changes nothing."""
    return {
        "profile": "slurm" if options["slurm"] else "auto" if options["auto_configure"] else None,
        "use_disk": None if _store(options) is None else True,
        "shared_memory": False if options["disable_shared_memory"] else None,
        "disk_threshold": options["memory_threshold"],
        "memory_buffer": options["memory_buffer"],
        "max_memory_per_process": options["max_memory_per_process"],
    }


def _store(options: Mapping[str, Any]) -> str | None:
    """Where images are held; None: nothing of them is."""
    if options["force_memmap"]:
        return "disk"
    return "auto" if options["memory_efficient"] or options["memory_threshold"] is not None else None


def _n_jobs(options: Mapping[str, Any]) -> int | None:
    alone = 1 if options["standard"] else -1 if options["parallel"] else None
    return alone if options["n_jobs"] is None else options["n_jobs"]


@contextlib.contextmanager
def _cache(options: Mapping[str, Any], place: Any) -> Iterator[Any]:
    """What ``memory`` is, between what is to be done with the cache first and at the end."""
    from sharedmask.image.results import Cache

    if options["clear_cache"]:
        click.echo(f"{Cache(place).clear()} results removed from {place}")
    keeps = options["cached"] or options["cache_dir"]
    yield place if keeps else memory_of(options["no_cache"] or options["standard"], None)
    if options["cache_stats"]:
        tell_cache(Cache(place))


def _chosen_parts(options: Mapping[str, Any]) -> Any:
    """What is written of each image, of regions of these names only; an unknown name is an error."""
    from sharedmask.regions.lut import read_lut
    from sharedmask.regions.masks import named_masks
    from sharedmask.sources.opening import open_source
    from sharedmask.study.tables import holds_regions

    given, labels = given_regions(options), None
    names, atlases, lut = (options[key] for key in ("names", "atlas", "lut"))
    if names and len(atlases) > 1:
        raise click.UsageError(f"--rois are regions of one --atlas, and {len(atlases)} are given")
    if names and options["sphere"]:
        raise click.UsageError("--rois are of masks or of an atlas: leave them out beside --sphere")
    if names and not atlases:
        found = named_masks(given)
        given = {name: found[name] for name in _known(names, found)}
    elif names:
        known = read_lut(lut[0]) if lut else open_source(atlases[0]).labels or {}
        values = {name: value for value, name in known.items()}
        labels = [values[name] for name in _known(names, values)]
    return parts_of(given, options, holds_regions(f".{options['form']}"), labels)


def _known(names: Sequence[str], there: Collection[str]) -> Sequence[str]:
    if unknown := sorted(set(names) - set(there)):
        known = ", ".join(sorted(there)[:20]) or "none named: give the atlas's --lut"
        raise NoInputError(f"no region {unknown[0]}; there are: {known}")
    return names
