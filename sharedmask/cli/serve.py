"""``sharedmask serve | drop``: a coordinator that loads images for other programs.

Covers: its options, its signals. Does not cover: what all verbs share (``base``), any of the work.
"""

import contextlib
import math
import os
import sys
from typing import Any

import click

from sharedmask.cli.base import commands, with_settings
from sharedmask.errors import ParameterError
from sharedmask.remote.addresses import absolute
from sharedmask.system import platform


@commands.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--memory-limit", metavar="SIZE", help="What all images may take together, for example 64G.")
@click.option("--idle", metavar="TIME", help="End after this long without a client: 90s, 30m, 2h.")
@click.option(
    "--store", type=click.Choice(["auto", "shm", "memfd", "disk"]), default="auto", show_default=True
)
@click.option(
    "--replace", is_flag=True, help="End the coordinator that is running, stopped or not, and take its place."
)
@with_settings
def serve(
    images: tuple[str, ...], memory_limit: str | None, idle: str | None, store: Any, replace: bool
) -> None:
    """Load images for other programs, each once: SharedImage.connect(IMAGE) finds them."""
    import signal

    from sharedmask.image import protocol
    from sharedmask.image.coordinator import Coordinator

    if replace:
        protocol.end()
    coordinator = Coordinator(memory_limit=memory_limit, idle=_seconds(idle), store=store)
    for number in platform.signals("SIGTERM", "SIGINT", "SIGHUP"):
        signal.signal(number, lambda *_: coordinator.stop())
    with coordinator:
        for image in images:
            coordinator.open(absolute(image))
        click.echo(f"serving, pid {os.getpid()}, images loaded: {len(images)}")
        sys.stdout.flush()
        coordinator.wait()


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(number) * units[unit]) < math.inf:
            return seconds
    raise click.UsageError(f"--idle {text}: write 90s, 30m or 2h")


@commands.command()
@click.argument("name")
def drop(name: str) -> None:
    """Have the coordinator close the image NAME; programs that use it keep what they have."""
    from sharedmask.image import protocol

    connection = protocol.connect()
    if connection is None:
        raise click.UsageError("no coordinator is running: an image goes with the process that owns it")
    with connection:
        if not protocol.ask(connection, "drop", name=name)["dropped"]:
            raise ParameterError(f"the coordinator holds no image {name!r}: `sharedmask ls` lists them")
