"""Names of regions and lesions where they are written: columns, members of archives, parts of file names.

Covers: which characters they cannot have, that no two become one. Does not cover: where names are from
(``lut``, ``masks``), writing (``tables``, ``study.output``).
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from sharedmask.errors import ParameterError

_LINES = "\x00-\x1f\x7f\x85\u2028\u2029"
_NOT_IN_COLUMNS = re.compile(f"[{_LINES}]")
_NOT_IN_MEMBERS = re.compile(rf"[/{_LINES}]|^\.$")
_OF_MEMBERS = ".npy"  # numpy reads an array by its name with or without it


def columns(names: Iterable[str]) -> tuple[str, ...]:
    """The names as the header of a table of text has them, without tabs and ends of lines.

    Raises ParameterError: two would become one, naming both, or a name is blank.

    Examples
    --------
    >>> columns(["L/IFG", "left\\tright"])
    ('L/IFG', 'left right')
    """
    return _distinct(tuple(names), _NOT_IN_COLUMNS, " ", "column")


def members(names: Iterable[str]) -> tuple[str, ...]:
    """The names as those of arrays in a file, or as parts of file names: without slashes too.

    Raises
    ------
    ParameterError
        As :func:`columns`.

    Examples
    --------
    >>> members(["L/IFG", "R"])
    ('L_IFG', 'R')
    """
    return _distinct(tuple(names), _NOT_IN_MEMBERS, "_", "name", _OF_MEMBERS)


@lru_cache(maxsize=16)  # very many runs have the same
def _distinct(
    names: tuple[str, ...], wrong: re.Pattern[str], instead: str, what: str, ending: str = ""
) -> tuple[str, ...]:
    written: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        text = wrong.sub(instead, name)
        if not text.strip():
            raise ParameterError(f"{name!r} is no name that can be written: give it another")
        first = taken.setdefault(text.removesuffix(ending), name)
        if text in written or first != name:
            raise ParameterError(
                f"{first!r} and {name!r} would both be written by the {what} {text!r}: rename one"
            )
        written[text] = name
    return tuple(written)
