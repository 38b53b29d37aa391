"""Amounts of memory as people write and read them.

Covers: bytes of a text, a number or a fraction, and back. Does not cover: how much there is
(``limits``), what may be used of it (``budget``).
"""

import math
import re

from sharedmask.errors import ParameterError
from sharedmask.system import limits

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DECIMAL = re.compile(r"\s*(?:\d+\.\d*|\.\d+)\s*")


def format_bytes(nbytes: float) -> str:
    """Bytes as text, in MiB, or in KiB if they are less than one.

    Examples
    --------
    >>> format_bytes(3 * 2**30), format_bytes(10_000), format_bytes(0)
    ('3,072 MiB', '10 KiB', '0 MiB')
    """
    if 0 < nbytes < 2**20:
        return f"{nbytes / 2**10:,.0f} KiB"
    return f"{nbytes / 2**20:,.0f} MiB"


def parse_bytes(amount: int | float | str, name: str = "memory_limit") -> int:
    """Bytes of ``8_000_000``, ``"8G"``, ``"512 MiB"``, or of ``0.5`` or ``"0.5"`` (of the RAM).

    Raises ParameterError: naming what was given as ``name``.

    Examples
    --------
    >>> parse_bytes("1.5K")
    1536
    """
    given = f"{name}={amount!r}"
    if isinstance(amount, str) and _DECIMAL.fullmatch(amount):
        amount = float(amount)
    nbytes = _of_text(amount, given) if isinstance(amount, str) else float(amount)
    if not math.isfinite(nbytes):
        raise ParameterError(f"{given} is no amount of memory")
    if isinstance(amount, float) and 1 < amount < 1024:
        raise ParameterError(f"{given} is no part of the RAM (1.0 is all of it): write '{amount:g}G' for GiB")
    if isinstance(amount, float) and 0 < amount <= 1:
        nbytes *= limits.ram()[0]
    if nbytes < 1:
        raise ParameterError(f"{given} leaves no memory")
    return int(nbytes)


def _of_text(amount: str, given: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", amount, re.IGNORECASE)
    if not found:
        raise ParameterError(f"{given} is no amount of memory: write '8G' or '512M'")
    return float(found[1]) * _UNITS[found[2].upper()]
