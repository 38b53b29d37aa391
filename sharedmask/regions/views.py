"""Views: regions and images as a notebook shows them.

Covers: HTML of facts, of tables, of pictures without axes. Does not cover: pages of a study (``reports``).
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from sharedmask.typing import Array

_MOST_ROWS = 30


def facts_html(title: str, facts: Mapping[str, Any], pictures: str = "") -> str:
    """A title, a table of two columns, and pictures beside it."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return (
        f"<div><b>{html.escape(title)}</b><div style='display:flex;gap:1em;flex-wrap:wrap'>"
        f"<table>{rows}</table><div>{pictures}</div></div></div>"
    )


def rows_html(heads: Iterable[str], rows: Iterable[Iterable[Any]], count: int) -> str:
    """The first rows of a table, and how many more there are."""
    cells = [[html.escape(str(cell)) for cell in row] for row in islice(rows, _MOST_ROWS)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
    more = f"<p>and {count - len(cells)} more</p>" if count > len(cells) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def projections_html(numbers: Array) -> str:
    """The largest value along each axis of (x, y, z), up is up; nothing without matplotlib."""
    return "".join(_picture(numbers.max(axis=axis), "turbo", masked=True) for axis in (2, 1, 0))


def slices_html(volume: Array) -> str:
    """The middle of (x, y, z) along each axis."""
    return "".join(_picture(volume.take(volume.shape[axis] // 2, axis), "gray") for axis in (2, 1, 0))


def _picture(plane: Array, colours: str, masked: bool = False) -> str:
    with suppress(ImportError):
        from matplotlib.image import imsave

        shown = np.asarray(plane, np.float64).T[::-1]
        buffer = io.BytesIO()
        imsave(buffer, np.ma.masked_equal(shown, 0) if masked else shown, cmap=colours, format="png")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        style = "height:7em;image-rendering:pixelated;margin-right:.3em"
        return f"<img style='{style}' src='data:image/png;base64,{data}'>"
    return ""
