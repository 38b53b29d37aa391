"""The programs, run in this process."""

import contextlib
import io
import sys
from typing import NamedTuple

import pytest

from sharedmask import cli
from sharedmask.cli import bids


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str


def run_program(main, *args):
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["program", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
    return Ended(stop.value.code or 0, out.getvalue(), err.getvalue())


def sharedmask(*args):
    return run_program(cli.main, *args)


def sharedmask_bids(*args):
    return run_program(bids.main, *args)
