"""The verbs that look after what is shared and kept: ``serve | ls | drop | doctor | gc | cache``.

Covers: options, what is printed where. Does not cover: the verbs on images (``base``), any of the
work.
"""

import os
import sys
import time
from typing import Any

import click

from sharedmask.cli.base import commands, echo, with_settings
from sharedmask.errors import ParameterError, SharedMaskError


@commands.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option("--memory-limit", metavar="SIZE", help="What all images may take together, for example 64G.")
@click.option("--idle", metavar="TIME", help="End after this long without a client: 90s, 30m, 2h.")
@click.option(
    "--store", type=click.Choice(["auto", "shm", "memfd", "disk"]), default="auto", show_default=True
)
@with_settings
def serve(images: tuple[str, ...], memory_limit: str | None, idle: str | None, store: Any) -> None:
    """Load images for other programs, each once: SharedImage.connect(IMAGE) finds them."""
    import signal

    from sharedmask.image.coordinator import Coordinator

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
    from sharedmask.image import protocol
    from sharedmask.image.image import SharedImage
    from sharedmask.storage import disk, registry
    from sharedmask.system.units import format_bytes as mib

    held: dict[str, int] = {}
    connection = protocol.connect()
    if connection is not None:
        with connection:
            held = {image["token"]: image["clients"] for image in protocol.ask(connection, "list")["images"]}
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
    from sharedmask.image import protocol

    connection = protocol.connect()
    if connection is None:
        raise click.UsageError("no coordinator is running: an image goes with the process that owns it")
    with connection:
        if not protocol.ask(connection, "drop", name=name)["dropped"]:
            raise ParameterError(f"the coordinator holds no image {name!r}: `sharedmask ls` lists them")


@commands.command()
@click.option("--disk", "kept", is_flag=True, help="And the rows kept on disk that nobody uses now.")
def gc(kept: bool) -> None:
    """Remove the shared memory of processes that died, and the files they left half written."""
    from sharedmask.storage import disk, registry

    removed = registry.reap() + disk.sweep()
    removed += disk.remove_unused() if kept else []
    for name in removed:
        click.echo(f"removed {name}")
    echo(f"{len(removed)} segments and files removed")
