"""``sharedmask cache stats | clear``: results that are kept.

Covers: its options. Does not cover: what all verbs share (``base``), any of the work.
"""

from typing import Any

import click

from sharedmask.cli.base import cache_dir_option, commands, echo


@commands.command()
@click.argument("action", type=click.Choice(["stats", "clear"]))
@cache_dir_option
def cache(action: str, cache_dir: str | None) -> None:
    """Tell what is in the cache of results and how it was used, or empty it."""
    from sharedmask.image.results import Cache

    found = Cache.of(cache_dir)
    if found is None:
        raise click.UsageError("there is no cache: give --cache-dir, or set SHAREDMASK_CACHE_DIR")
    if action == "clear":
        n_entries = found.clear()
        echo(f"{n_entries} entries removed from {found.folder}")
        return
    tell_cache(found)


def tell_cache(cache: Any) -> None:
    """What is in a cache, and how it was used."""
    stats = cache.stats()
    rows = {"folder": stats.folder, "entries": stats.n_entries, "bytes": stats.nbytes, "limit": stats.limit}
    for name, value in (rows | vars(stats.counts)).items():
        click.echo(f"{name.replace('_', ' '):<13}  {value}")
