"""``sharedmask info``: what an image is, and what it would take.

Covers: its options and output. Does not cover: what all verbs share (``base``).
"""

import click

from sharedmask.cli.base import commands, with_settings

_SHOWN = 5


@commands.command()
@click.argument("bold")
@click.option("--mask-img", metavar="M", help="Count the voxels inside it only.")
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@with_settings
def info(bold: str, mask_img: str | None, memory_limit: str | None) -> None:
    """Print what BOLD is, what it takes in memory and what may be used; of a file of labels its regions."""
    from sharedmask.sources.opening import open_source

    is_atlas = open_source(bold).labels is not None
    rows = _of_atlas(bold) if is_atlas else _of_image(bold, mask_img, memory_limit)
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


def _of_image(bold: str, mask_img: str | None, memory_limit: str | None) -> dict[str, str]:
    from sharedmask.image.image import SharedImage
    from sharedmask.storage import memory
    from sharedmask.system import settings
    from sharedmask.system.budget import MemoryBudget
    from sharedmask.system.units import format_bytes

    image = SharedImage(bold, mask_img=mask_img)
    budget = MemoryBudget.here(memory_limit)
    free = memory.free_bytes()
    stored = str(image.dtype)
    if image.scaling != (1.0, 0.0):
        stored += ", values times {:g} plus {:g}".format(*image.scaling)
    rows = {
        "image": bold,
        "shape": " x ".join(map(str, image.shape)),
        **({"space": str(image.space)} if len(image.shape) == 2 else {}),
        "stored as": stored,
        "repetition time": f"{'not known' if image.t_r is None else f'{image.t_r:g} s'}: {image.t_r_origin}",
        "takes in a store": format_bytes(image.nbytes),
        "store": "{} ({})".format(*image.store),
        **({} if free is None else {"/dev/shm has room for": format_bytes(free)}),
        "memory that may be used": f"{format_bytes(budget.limit)} ({budget.reason})",
    }
    return rows | {
        name: f"{getattr(settings.current(), name)} ({o})" for name, o in settings.origins().items()
    }


def _of_atlas(labels: str) -> dict[str, str]:
    from sharedmask.regions.regions import Regions

    regions = Regions.from_labels(labels)
    names = ", ".join(regions.names[:_SHOWN]) + (", ..." if len(regions) > _SHOWN else "")
    return {
        "atlas": labels,
        "space": str(regions.grid),
        "regions": f"{len(regions)} ({names})",
        "elements in regions": str(len(regions.indices)),
    }
