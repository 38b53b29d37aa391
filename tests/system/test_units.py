"""Amounts of memory: as numbers, fractions and texts."""

import psutil
import pytest

from sharedmask.errors import ParameterError
from sharedmask.system.units import format_bytes, parse_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("amount", "nbytes"),
    [
        (8_000_000, 8_000_000),
        (1, 1),
        (2.5e6, 2_500_000),
        ("123", 123),
        ("123B", 123),
        ("8G", 8 * 2**30),
        ("8g", 8 * 2**30),
        ("8GB", 8 * 2**30),
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("512M", 512 * MIB),
        (" 512 MiB ", 512 * MIB),
        ("1.5K", 1536),
        ("0.5T", 2**39),
    ],
)
def test_amounts(amount, nbytes):
    assert parse_bytes(amount) == nbytes


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_fractions_are_of_the_ram(fraction):
    assert parse_bytes(fraction) == int(fraction * psutil.virtual_memory().total)


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        *((one, "no amount") for one in ("", "much", "8X", "G", "-8G", "8 G B", "1e9", "8,5G", "½G")),
        *((one, "leaves no") for one in (0, -1, 0.0, -0.5, "0", "0G", "0.0M")),
    ],
)
def test_what_is_no_amount_or_leaves_nothing(amount, said):
    with pytest.raises(ParameterError, match=f"{said}.* memory") as caught:
        parse_bytes(amount)
    assert repr(amount) in str(caught.value)


@pytest.mark.parametrize("amount", [1.5, "1.5", 16.0])
def test_parts_of_more_than_all_are_no_bytes(amount):
    with pytest.raises(ParameterError, match=f"write '{float(amount):g}G' for GiB"):
        parse_bytes(amount)


@pytest.mark.parametrize("amount", [float("nan"), float("inf")])
def test_numbers_that_are_no_amount(amount):
    with pytest.raises(ParameterError, match="memory_limit"):
        parse_bytes(amount)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 MiB"), (MIB, "1 MiB"), (1.6 * MIB, "2 MiB"), (5000 * MIB, "5,000 MiB")]
)
def test_text_of_bytes(nbytes, text):
    assert format_bytes(nbytes) == text
