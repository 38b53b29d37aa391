"""``sharedmask run``: many images, with the flags of memory-efficient pipelines.

Covers: what those flags stand for, images held one after the other. Does not cover: ``extract``, which
reads each image once and holds none, BIDS (``bids``), where results go (``output``).
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

import click

from sharedmask.cli.base import (
    Verb,
    check_form,
    commands,
    echo_study,
    logging_to_stderr,
    regions_maker,
    strategy_of,
)
from sharedmask.cli.cache import tell_cache
from sharedmask.errors import NoInputError

_SUBJECT = re.compile(r"(?:^|[_/])(sub-[a-zA-Z0-9]+)")


@commands.command("run", cls=Verb)
@click.argument("images", nargs=-1, metavar="BOLD...")
@click.option("--rois", "names", multiple=True, metavar="NAME...", help="Of the masks; default: all.")
@click.option("--masks", metavar="GLOB", help="Pattern of binary masks; quote it.")
@click.option("--atlas", metavar="A", help="Label image.")
@click.option("--lut", metavar="TSV")
@click.option("--stat", metavar="NAME", help="As in extract; default: mean.")
@click.option("--subjects", multiple=True, metavar="L...", help="Of the images; with or without sub-.")
@click.option("--output-dir", default="output", show_default=True, metavar="DIR")
@click.option("--format", "form", type=click.Choice(["tsv", "npz", "h5"]), default="tsv", show_default=True)
@click.option("--standard", is_flag=True, help="One worker and no cache: the default, said aloud.")
@click.option("--parallel", is_flag=True, help="--n-jobs workers.")
@click.option("--n-jobs", type=int, default=1, show_default=True)
@click.option("--cached", is_flag=True, help="Keep results in --cache-dir for the next run.")
@click.option("--cache-dir", default="cache", show_default=True, metavar="DIR")
@click.option("--clear-cache", is_flag=True, help="Remove our entries in --cache-dir first.")
@click.option("--cache-stats", is_flag=True, help="At the end, print how the cache was used.")
@click.option("--memory-efficient", is_flag=True, help="Images in shared memory, or on disk if too large.")
@click.option("--memory-threshold", type=float, metavar="GB", help="Larger images go to the disk.")
@click.option("--memory-buffer", type=float, metavar="FRACTION", help="Of the limit; stays free.")
@click.option("--max-memory-per-process", type=float, metavar="GB")
@click.option("--force-memmap", is_flag=True, help="Images on disk, whatever their size.")
@click.option("--disable-shared-memory", is_flag=True, help="Workers are threads.")
@click.option("--auto-configure", is_flag=True, help="Numbers for this machine; explicit flags win.")
@click.option("--slurm", is_flag=True, help="Numbers of the job; explicit flags win.")
@click.option("--log-memory", is_flag=True, help="One line per operation.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done.")
def run_pipeline(images: tuple[str, ...], subjects: tuple[str, ...], **options: Any) -> None:
    """Mask each BOLD, held in memory or on disk, with the flags of memory-efficient pipelines."""
    from sharedmask.system import settings

    if options["standard"] and (options["parallel"] or options["cached"]):
        raise click.UsageError("--standard is neither --parallel nor --cached")
    check_form(options["stat"], f".{options['form']}")
    if bool(options["masks"]) == bool(options["atlas"]):
        raise click.UsageError("give --masks or --atlas")
    chosen = _of_subjects(images, subjects)
    with (
        settings.using(**_knobs(options)),
        logging_to_stderr(options["log_memory"], "sharedmask.monitor"),
        logging_to_stderr(options["verbose"], "sharedmask"),
    ):
        _run(chosen, options)


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


def _knobs(options: dict[str, Any]) -> dict[str, Any]:
    """Settings that the flags stand for; None leaves one to profile and default."""
    gib = 2**30
    shared = options["memory_efficient"] or options["force_memmap"]
    threshold, bound = options["memory_threshold"], options["max_memory_per_process"]
    return {
        "profile": "slurm" if options["slurm"] else "auto" if options["auto_configure"] else None,
        "use_disk": shared,
        "shared_memory": not options["disable_shared_memory"],
        "disk_threshold": None if threshold is None else int(threshold * gib),
        "memory_buffer": options["memory_buffer"],
        "max_memory_per_process": None if bound is None else int(bound * gib),
        "log_memory": options["log_memory"] or None,
    }


def _run(images: list[str], options: dict[str, Any]) -> None:
    from sharedmask.image.results import Cache
    from sharedmask.study.output import OutputFolder

    cache = Cache(options["cache_dir"]) if options["cached"] or options["clear_cache"] else None
    if cache is not None and options["clear_cache"]:
        click.echo(f"{cache.clear()} results removed from {options['cache_dir']}")
    form, strategy = f".{options['form']}", strategy_of(options["stat"])
    study = _hold_each(
        OutputFolder.begin(options["output_dir"], images, _chosen_regions(options), form, strategy),
        "disk" if options["force_memmap"] else "auto",
        n_jobs=options["n_jobs"] if options["parallel"] else 1,
        memory=options["cache_dir"] if options["cached"] else False,
    )
    if options["cache_stats"]:
        tell_cache(Cache(options["cache_dir"]))
    echo_study(study, "images")


def _hold_each(folder: Any, store: Any, **options: Any) -> Any:
    """Hold one image after the other, and let several workers mask it: the next call may find its rows."""
    from sharedmask.image.image import SharedImage
    from sharedmask.study.cohort import Study

    study = Study()
    for path in folder.paths:
        try:
            with SharedImage(path, store=store) as image:
                regions = folder.regions(path)
                if folder.strategy is None:
                    signals = image.mask_parallel(regions, **options)
                else:
                    signals = image.reduce(regions, folder.strategy, **options)
            folder.keep(path, signals)
            study.complete.append(path)
        except Exception as error:
            folder.fail(path, error)
            study.errors[path] = error
    return study


def _chosen_regions(options: dict[str, Any]) -> Any:
    """The regions on a grid, of these names only; an unknown name is an error."""
    from sharedmask.regions.lut import read_lut
    from sharedmask.regions.masks import matching

    names, masks, atlas, lut = (options[key] for key in ("names", "masks", "atlas", "lut"))
    if not names:
        return regions_maker(masks, atlas, lut, "data")
    if masks:
        found: dict[str, Any] = matching(masks)
        return regions_maker({name: found[name] for name in _known(names, found)}, None, None, "data")
    values = {name: value for value, name in read_lut(lut).items()}
    return regions_maker(None, atlas, lut, "data", [values[name] for name in _known(names, values)])


def _known(names: Sequence[str], there: Collection[str]) -> Sequence[str]:
    if unknown := sorted(set(names) - set(there)):
        raise NoInputError(
            f"no region {unknown[0]}; there are: {', '.join(sorted(there)[:20]) or 'none named'}"
        )
    return names
