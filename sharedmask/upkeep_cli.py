"""The verbs that look after what is shared and kept: ``serve | ls | drop | doctor | gc | cache``.

Covers: options, what is printed where. Does not cover: the verbs on images (``cli``), any of the
work.
"""

import os
import sys
import time
from typing import Any

import click

from sharedmask.cli import cache_dir_option, commands, say, with_settings
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


@commands.command()
@click.option("--disk", "kept", is_flag=True, help="And the rows kept on disk that nobody uses now.")
def gc(kept: bool) -> None:
    """Remove the shared memory of processes that died, and the files they left half written."""
    from sharedmask import disk, registry

    removed = registry.reap() + disk.sweep()
    removed += disk.remove_unused() if kept else []
    for name in removed:
        click.echo(f"removed {name}")
    say(f"{len(removed)} segments and files removed")


@commands.command()
@click.argument("action", type=click.Choice(["stats", "clear"]))
@cache_dir_option
def cache(action: str, cache_dir: str | None) -> None:
    """Tell what is in the cache of results and how it was used, or empty it."""
    from sharedmask.cache import Cache

    found = Cache.of(cache_dir)
    if found is None:
        raise click.UsageError("there is no cache: give --cache-dir, or set SHAREDMASK_CACHE_DIR")
    if action == "clear":
        n_entries = found.clear()
        say(f"{n_entries} entries removed from {found.folder}")
        return
    tell_cache(found)


def tell_cache(cache: Any) -> None:
    """What is in a cache, and how it was used."""
    stats = cache.stats()
    rows = {"folder": stats.folder, "entries": stats.n_entries, "bytes": stats.nbytes, "limit": stats.limit}
    for name, value in (rows | vars(stats.counts)).items():
        click.echo(f"{name.replace('_', ' '):<13}  {value}")
