"""``sharedmask ls``: what is shared by living processes, and what is kept on disk.

Covers: the columns that are printed. Does not cover: what all verbs share (``base``), the records
themselves (``registry``, ``disk``).
"""

import re
import time

import click

from sharedmask.cli.base import commands
from sharedmask.errors import SharedMaskError


@commands.command("ls")
def list_images() -> None:
    """List the shared images of living processes, and the rows that are kept on disk."""
    from sharedmask.image import protocol
    from sharedmask.image.image import SharedImage
    from sharedmask.storage import disk, registry
    from sharedmask.system.units import format_bytes

    try:
        held = protocol.clients()
    except SharedMaskError as error:
        held = {}
        click.echo(f"sharedmask: {error}", err=True)
    head = ("name", "shape", "size", "store", "owner", "age", "clients")
    lines = [head]
    for entry in registry.entries():
        facts = ("loading", "", "")
        if entry.handle is not None:
            try:
                image = SharedImage.attach(entry.handle)
                facts = "x".join(map(str, image.shape)), format_bytes(image.nbytes), image.store[0]
            except SharedMaskError:
                facts = "output", format_bytes(entry.handle.nbytes), entry.handle.store
        age = f"{time.monotonic() - entry.created:.0f} s"
        lines.append((_in_a_line(entry.label), *facts, str(entry.pid), age, str(held.get(entry.token, ""))))
    for kept in disk.entries():
        age = f"{time.time() - kept.used:.0f} s"
        lines.append((_in_a_line(kept.label), "kept", format_bytes(kept.nbytes), "disk", "", age, ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _in_a_line(name: str) -> str:
    """A name without what moves the cursor."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", name)
