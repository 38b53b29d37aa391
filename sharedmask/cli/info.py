"""``sharedmask info``: what an image is, and what it would take.

Covers: its options and output. Does not cover: what all verbs share (``base``).
"""

import click

from sharedmask.cli.base import commands, with_settings


@commands.command()
@click.argument("bold")
@click.option("--mask-img", metavar="M", help="Count the voxels inside it only.")
@click.option("--memory-limit", metavar="SIZE", help="For example 8G.")
@with_settings
def info(bold: str, mask_img: str | None, memory_limit: str | None) -> None:
    """Print what BOLD is, what it takes in memory and what may be used."""
    from sharedmask.image.image import SharedImage
    from sharedmask.storage import memory
    from sharedmask.system import settings
    from sharedmask.system.budget import MemoryBudget
    from sharedmask.system.units import format_bytes

    image = SharedImage(bold, mask_img=mask_img)
    budget = MemoryBudget.here(memory_limit)
    free = memory.free_bytes()
    scaled = image.scaling
    rows = {
        "image": bold,
        "shape": " x ".join(map(str, image.shape)),
        **({"space": str(image.space)} if len(image.shape) == 2 else {}),
        "stored as": f"{image.dtype}, values times {scaled[0]:g} plus {scaled[1]:g}"
        if scaled != (1.0, 0.0)
        else str(image.dtype),
        "repetition time": f"{'not known' if image.t_r is None else f'{image.t_r:g} s'}: {image.t_r_origin}",
        "takes in a store": format_bytes(image.nbytes),
        "store": "{} ({})".format(*image.store),
        **({} if free is None else {"/dev/shm has room for": format_bytes(free)}),
        "memory that may be used": f"{format_bytes(budget.limit)} ({budget.reason})",
    }
    rows |= {name: f"{getattr(settings.current(), name)} ({o})" for name, o in settings.origins().items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")
