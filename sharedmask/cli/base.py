"""What all verbs share: ``Verb``, options that several have, exit codes, what is printed where.

Covers: running a command line, one line per error. Does not cover: a verb's own options (its file
has them), any of the work.

Data go to files or standard output, everything else to standard error. Exit codes follow the BIDS
execution specification: 0 done, 16 no BIDS data set, 18 nothing selected, 64 wrong usage, 65 bad
data, 66 input missing, 73 output cannot be made, 74 input or output failed, 75 try again with more
memory or later, 1 anything else, or some of many items failed.
"""

import contextlib
import functools
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import click

from sharedmask._version import __version__
from sharedmask.errors import (
    ConfoundsError,
    DamagedImageError,
    DatasetError,
    MemoryLimitError,
    MissingFileError,
    NoInputError,
    ParameterError,
    SegmentError,
    SharedMaskError,
    WorkerError,
)

_EXIT_CODES: list[tuple[type[BaseException] | tuple[type[BaseException], ...], int]] = [
    (click.UsageError, 64),
    ((ConfoundsError, DamagedImageError), 65),
    (ParameterError, 64),
    (DatasetError, 16),
    (NoInputError, 18),
    (MissingFileError, 66),
    ((MemoryLimitError, SegmentError, WorkerError, MemoryError), 75),
    (SharedMaskError, 65),
    (FileNotFoundError, 66),
    (OSError, 74),
]
CANNOT_CREATE = 73
_INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])

_NUMBER = re.compile(r"-[\d.]")  # which a value may begin with
_HOME = re.compile(r"^((?:--[\w-]+=)?)~(?=/)")  # where shells leave it: after =, in quotes
_REGIONS = ("mask_list", "masks", "sphere")
LAST_TAKEN = "sharedmask.last_taken"
"""Key of what is taken for an argument although it stands among the values of an option."""


class Yielding(click.Option):
    """A repeatable option that takes one value a time where arguments of its verb would be missing else."""


class Naming(Yielding):
    """One whose values are names, not files: another option's last value is rather the argument."""


class Verb(click.Command):
    """A command whose repeatable options take several values, as in ``--mask a.nii b.nii -o out``.

    Of the others none may be given twice: the last would win in silence.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = [_HOME.sub(lambda found: found[1] + os.path.expanduser("~"), arg) for arg in args]
        self._check_once(args)
        for attempt in self._attempts(ctx, args):
            with contextlib.suppress(click.MissingParameter):
                return super().parse_args(ctx, list(attempt))  # which it takes from
        return super().parse_args(ctx, list(attempt))

    def _attempts(self, ctx: click.Context, args: list[str]) -> Iterator[list[str]]:
        """The arguments as they may be meant: no value of an option is one, those of one are, the last is."""
        options = [option for option in self.params if getattr(option, "multiple", False)]
        always = [option for option in options if not isinstance(option, Yielding)]
        naming = [option for option in options if isinstance(option, Naming)]
        yielding = [option for option in options if option not in always and option not in naming]
        yield (every := self._spread(args, options))
        for one in yielding:
            yield self._spread(args, [option for option in options if option is not one])
        yield self._last_taken(ctx, every, [option for option in always if option.name in _REGIONS])
        for one in naming:
            yield self._spread(args, [option for option in options if option is not one])
        yield (spread := self._spread(args, always))
        yield self._last_taken(ctx, spread, always)

    @staticmethod
    def _last_taken(ctx: click.Context, spread: list[str], options: Sequence[click.Parameter]) -> list[str]:
        """With the last of several values of an option as the argument: ``--masks a b BOLD``."""
        several = {name for option in options for name in option.opts}
        for place in range(len(spread) - 1, 2, -1):
            if spread[place - 1] == spread[place - 3] and spread[place - 1] in several:
                ctx.meta[LAST_TAKEN] = spread[place]
                return [spread[place], *spread[: place - 1], *spread[place + 1 :]]
        return spread

    @staticmethod
    def _spread(args: list[str], options: Sequence[click.Parameter]) -> list[str]:
        """The arguments with the name of each of these options before every value of its."""
        several = {name for option in options for name in option.opts}
        words = {name for option in options if isinstance(option, Naming) for name in option.opts}
        repeated: list[str] = []
        option = ""
        for arg in args:
            if arg.startswith("-") and arg != "-" and not _NUMBER.match(arg):
                option = arg.replace("_", "-") if arg.startswith("--") else arg
            elif option in several and repeated[-1].replace("_", "-") != option:
                repeated += [option] if option not in words or not {".", "/"} & set(arg) else []  # a file
            repeated.append(arg)
        return repeated

    def _check_once(self, args: list[str]) -> None:
        once = {
            name: option
            for option in self.params
            if isinstance(option, click.Option) and not (option.multiple or option.is_flag or option.count)
            for name in option.opts
        }
        seen = set[click.Option]()
        for arg in args[: args.index("--") if "--" in args else None]:
            name = arg.partition("=")[0].replace("_", "-") if arg.startswith("--") else arg[:2]
            option = once.get(name)
            if option in seen:
                raise click.UsageError(f"{name} is given twice: it takes one value")
            if option is not None:
                seen.add(option)


CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 100,
}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="sharedmask")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def commands() -> None:
    """Mask one large fMRI run with many regions, from one copy in memory."""


def run_program(command: click.Command) -> None:
    """Run a command line; one line per error, and its exit code."""
    _open_standard_streams()
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *rest: (
        f"sharedmask: {message}\n" if issubclass(category, UserWarning) else plain(message, category, *rest)
    )
    try:
        code = command([arg for arg in sys.argv[1:] if arg != "--debug"], standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("sharedmask: interrupted", err=True)
        code = _INTERRUPTED
    except Exception as error:
        if _debugs():
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else in_flags(error)
        if isinstance(error, OSError) and _is_of_stdout(error) and error.filename is None:
            message = f"standard output: {message}"
        click.echo(f"sharedmask: {' '.join(message.split()) or type(error).__name__}", err=True)
        code = next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)
    finally:
        warnings.formatwarning = plain
    sys.exit(code)


def _is_of_stdout(error: OSError) -> bool:
    """Whether it is standard output that cannot be written: what is left in its buffer, which then goes."""
    try:
        sys.stdout.flush()
    except OSError as again:
        with open(os.devnull, "wb") as nothing:  # else Python tries once more, and exits with another code
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return again.errno == error.errno
    return False


def _debugs() -> bool:
    return "--debug" in sys.argv  # wherever it stands


def _open_standard_streams() -> None:
    """Give what was closed when we were started an end, so that no file of ours becomes a standard stream.

    Names of files are written as the bytes that they are, whatever the locale. Without a buffer, as ``python
    -u`` has it, nothing tells that an error is standard output's: it gets one, which each echo empties.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            with contextlib.suppress(OSError):
                os.fstat(fd)
                fd = nothing  # of somebody who opened it since
            if fd != nothing:
                os.dup2(nothing, fd)
                os.close(nothing)
            stream = open(fd, mode, errors="backslashreplace", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, stream)
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        sys.stdout = open(sys.stdout.fileno(), "w", closefd=False)  # noqa: SIM115 - for good
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def with_settings(verb: F) -> F:
    """Options that set knobs while a verb runs, before the environment and the configuration file."""

    @functools.wraps(verb)
    def run(config: str | None, set_knobs: tuple[str, ...], **options: Any) -> Any:
        from sharedmask.system import settings

        asked = {name: options.pop(name) for name in ("profile", "decoders", "log_memory")}
        asked["memory_limit"] = options.get("memory_limit")
        given = settings.from_texts(set_knobs) | {name: value for name, value in asked.items() if value}
        with (
            settings.using(config=config, **given) as knobs,
            logging_to_stderr(knobs.log_memory, "sharedmask.monitor"),
        ):
            return verb(**options)

    return cast(F, _settings_options(run))


_settings_options = options(
    click.option("--config", metavar="FILE", help="Settings in TOML, instead of the usual file."),
    click.option("--profile", type=click.Choice(["small", "medium", "large", "auto", "slurm"])),
    click.option("--set", "set_knobs", metavar="NAME=VALUE", multiple=True, help="Any other setting."),
    click.option(
        "--decode-jobs",
        "decoders",
        type=click.IntRange(1),
        metavar="N",
        help="Cores that decode one file with an index.",
    ),
    click.option("--log-memory", is_flag=True, help="One line per operation: memory projected and in use."),
)


@contextlib.contextmanager
def logging_to_stderr(on: bool, name: str) -> Iterator[None]:
    """What the logger ``name`` says, on standard error, and once: those above it are not told."""
    if not on:
        yield
        return
    import logging

    logger, handler = logging.getLogger(name), logging.StreamHandler()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


filter_options = options(
    click.option("--standardize", type=click.Choice(["zscore_sample", "psc"]), help="After all other steps."),
    click.option("--detrend", is_flag=True, help="Remove linear trends."),
    click.option("--low-pass", type=float, metavar="HZ"),
    click.option("--high-pass", type=float, metavar="HZ"),
)

t_r_option = click.option("--t-r", type=float, metavar="S", help="Repetition time; default: the image's.")

cleaning_options = options(
    filter_options,
    click.option("--confounds", metavar="TSV", multiple=True, help="Tables with one row per volume."),
    t_r_option,
)

_MODELS = "basic|power2|derivatives|full"

denoise_options = options(
    click.option(
        "--denoise-strategy",
        "strategy",
        cls=Naming,
        multiple=True,
        metavar="NAME...",
        help="Confounds of fMRIPrep to regress out, by nilearn's names: simple, scrubbing, compcor, "
        "ica_aroma; or components: high_pass, motion, wm_csf, global_signal, compcor, ica_aroma, scrub.",
    ),
    click.option("--motion", metavar=_MODELS, help="Of a strategy with motion."),
    click.option("--wm-csf", metavar=_MODELS, help="Of a strategy with wm_csf."),
    click.option("--global-signal", metavar=_MODELS, help="Regress out the global signal too."),
    click.option("--compcor", metavar="NAME", help="anat_combined, anat_separated, temporal and both."),
    click.option("--n-compcor", metavar="N|all"),
    click.option(
        "--ica-aroma",
        metavar="full|basic",
        help="full: of images that it denoised (desc-smoothAROMAnonaggr); basic: regress out its components.",
    ),
    click.option("--fd-threshold", type=float, metavar="MM", help="Volumes with more motion go."),
    click.option("--std-dvars-threshold", type=float, metavar="X", help="Volumes with a larger DVARS go."),
    click.option("--scrub", type=int, metavar="N", help="Segments shorter than N between them go too."),
    click.option("--demean/--no-demean", default=True, help="Of confounds."),
    click.option(
        "--confounds-columns", "columns", metavar="PATTERNS", help="As 'trans_*,rot_*,white_matter'."
    ),
    click.option("--dummy-scans", metavar="N|auto", help="Volumes at the beginning that go."),
)


connectivity_options = options(
    click.option(
        "--connectivity",
        cls=Naming,
        multiple=True,
        metavar="KIND...",
        help="Matrices of the regions' signals: correlation, partial-correlation, covariance, precision; "
        "at the group level of sharedmask-bids tangent.",
    ),
    click.option("--fisher-z", is_flag=True, help="Of correlations."),
)


def denoise_of(options: dict[str, Any]) -> Any:
    """What ``denoise_options`` ask for, taken out of the options; None if nothing."""
    names = ("motion", "wm_csf", "global_signal", "compcor", "n_compcor", "ica_aroma", "fd_threshold",
             "std_dvars_threshold", "scrub", "demean", "columns", "dummy_scans", "strategy")  # fmt: skip
    given = {name: value for name in names if (value := options.pop(name)) not in (None, ())}
    if given == {"demean": True}:
        return None
    from sharedmask.study.denoising import STRATEGIES, Denoise

    strategy = given.get("strategy", ())
    if len(strategy) == 1 and strategy[0] in STRATEGIES:
        given["strategy"] = strategy[0]
    for name in ("n_compcor", "dummy_scans"):
        with contextlib.suppress(KeyError, ValueError):
            given[name] = int(given[name])
    return Denoise(**given)


region_options = options(
    click.option("--mask", "mask_list", metavar="M...", multiple=True, help="One or more binary masks."),
    click.option("--masks", metavar="GLOB...", multiple=True, help="Patterns of masks, or files."),
    click.option(
        "--sphere",
        metavar="X,Y,Z,R...",
        multiple=True,
        help="Spheres in mm (without R the voxel there), or a TSV: x, y, z and, if need be, radius, name.",
    ),
    click.option(
        "--atlas",
        metavar="A...",
        cls=Yielding,
        multiple=True,
        help="Label images; a file for each of several.",
    ),
    click.option(
        "--lut",
        metavar="TSV...",
        cls=Yielding,
        multiple=True,
        help="Names of the atlas's labels: columns index and name; one for each atlas.",
    ),
    click.option(
        "--stat",
        metavar="NAME...",
        cls=Naming,
        multiple=True,
        help="One value per region and volume: mean, median, sum, minimum, maximum, variance, "
        "standard_deviation, pc1, or weighted_mean of an --atlas of 4D maps; a table for each of several. "
        "Without it a .tsv holds means, .npz and .h5 the series of all voxels.",
    ),
)

folder_options = options(
    click.option(
        "--format",
        "form",
        type=click.Choice(["tsv", "ptseries.nii", "pconn.nii", "npz", "h5"]),
        default="tsv",
        help="Of the files in the folder.",
    ),
    click.option("--overwrite", is_flag=True, help="Do complete images in the folder again."),
    click.option("--shard", metavar="I/N", help="The I-th of N parts of the images, for array jobs."),
    click.option(
        "--dask", metavar="ADDRESS", help="Work on this Dask cluster; local starts one of --n-jobs."
    ),
)

image_options = options(
    click.option("--smoothing-fwhm", type=float, metavar="MM", help="Smooth BOLD first."),
    click.option(
        "--resampling-target",
        type=click.Choice(["data", "mask"]),
        help="Resample masks on other grids to BOLD (data), or BOLD to the masks.",
    ),
    click.option("--nan-policy", type=click.Choice(["zero", "propagate", "raise", "omit"])),
    click.option("--memory-limit", metavar="SIZE", help="For example 8G."),
    click.option("--no-cache", is_flag=True, help="Compute, and keep nothing, whatever the settings say."),
    click.option(
        "--profile-memory",
        metavar="FILE",
        help="Memory over time, for `mprof plot`, and its picture (.png).",
    ),
)

cache_dir_option = click.option(
    "--cache-dir", metavar="DIR", help="Where results are kept for the next time; default: the setting."
)


def is_given(name: str) -> bool:
    """Whether an option of the verb at work stands on its command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def memory_of(no_cache: bool, cache_dir: str | None) -> str | bool | None:
    """Where results are kept: the setting's folder if nothing is given."""
    if no_cache and cache_dir:
        raise click.UsageError(f"--no-cache keeps nothing: leave out --cache-dir {cache_dir}")
    return False if no_cache else cache_dir


def strategy_of(stat: str | Sequence[str] | None) -> str | tuple[str, ...]:
    """The reduction that ``--stat`` asks for, or several."""
    stats = [stat] if isinstance(stat, str) else stat or ["mean"]
    names = tuple(one.replace("-", "_") for one in stats)
    return names if len(names) > 1 else names[0]


# What messages advise in Python, and what that is on a command line.
_IN_FLAGS = {
    r", as with iter_masks\(\.\.\., batch_size=(\d+)\)": r": \1",
    r"\bneeds t_r\b": "needs --t-r",
    r"\bstrategy=(?=['\"])": "stat=",
    r"\b(resampling_target|low_pass|high_pass|t_r|n_jobs|nan_policy|smoothing_fwhm|standardize|batch_size|stat"
    r"|min_coverage|motion|wm_csf|global_signal|n_compcor|compcor|ica_aroma|scrub|dummy_scans|shard"
    r"|(?:fd|std_dvars)_threshold)"
    r"=([\"']?)([\w.+/-]+)\2": r"--\1 \3",
}


def in_flags(error: Exception) -> str:
    """What an error says, with the flags of a command line in the place of parameters."""
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"{os.fsdecode(error.filename)}: {error.strerror}"  # without Python's number
    for pattern, flags in _IN_FLAGS.items():
        said = re.sub(pattern, flags, said)
    return re.sub(r"(?<!\S)--\w+", lambda found: found[0].replace("_", "-"), said)


def echo_failures(errors: Mapping[Any, Exception]) -> None:
    """Each on a line; with ``--debug`` its traceback first."""
    for key, error in errors.items():
        if _debugs():
            traceback.print_exception(error)
        click.echo(f"sharedmask: {key}: {' '.join(in_flags(error).split())}", err=True)


def echo_study(study: Any, what: str) -> None:
    """Each failure on a line, what was done, and exit code 1 if something failed."""
    echo_failures(study.errors)
    done = f"{len(study.complete)} {what} complete, {len(study.skipped)} were already"
    click.echo(f"{done}, {len(study.errors)} failed")
    if study.errors:
        raise click.exceptions.Exit(1)


def echo(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)
