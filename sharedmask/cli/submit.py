"""``sharedmask submit``: a command line of ``extract`` as an array job of SLURM.

Covers: the batch script, its size in memory, handing it to ``sbatch``. Does not cover: what the
command does, its parts (``--shard``, see ``cohort``), what a job may use (``budget``).
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sharedmask.cli import extract
from sharedmask.cli.base import commands
from sharedmask.cli.extract import check_folder, check_form
from sharedmask.errors import ParameterError, SharedMaskError
from sharedmask.records import dataclass
from sharedmask.system.files import atomic_write


@commands.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--array", "n_tasks", type=click.IntRange(1), metavar="N", help="Tasks; default: one per image."
)
@click.option(
    "--max-array", type=click.IntRange(1), metavar="N", help="Tasks that the cluster takes; default: its own."
)
@click.option("--sbatch", "directives", metavar="OPTION", multiple=True, help="As --sbatch=--partition=long.")
@click.option("--log-dir", metavar="DIR", default="sharedmask-logs", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print the script and submit nothing.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- extract BOLD... --out-dir DIR ...")
def submit(
    n_tasks: int | None,
    max_array: int | None,
    directives: tuple[str, ...],
    log_dir: str,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Submit extract as an array job of SLURM, with the memory that its largest image needs."""
    if command[:1] != ("extract",):
        raise click.UsageError("after -- comes the command to submit: extract BOLD... --out-dir DIR ...")
    options = extract.extract.make_context("extract", list(command[1:])).params
    if not options["out_dir"] or options["shard"] or options["dask"]:
        raise click.UsageError("an array job needs --out-dir, and neither --shard nor --dask")
    check_folder(options["out_dir"])
    check_form(options["stat"], f".{options['form']}")
    options["denoise"] = extract.denoised(options, options["confounds"])
    images, n_jobs = options["images"], max(options["n_jobs"] or 1, 1)
    job = Submission(
        arguments=command,
        n_tasks=min(n_tasks or len(images), len(images), max_array or most_tasks()),
        memory=task_bytes(_largest(options), n_jobs, extract.cleans(options)),
        folder=Path(log_dir).absolute(),
        n_cpus=n_jobs,
        directives=directives,
    )
    click.echo(job.script if dry_run else job.submit())


def most_tasks() -> int:
    """Of one array on this cluster, by what SLURM says of itself; without limit where it says nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["scontrol", "show", "config"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
        if found := re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE):
            return int(found[1]) - 1  # numbers of tasks are below it, and ours begin at 1
    return sys.maxsize


def _largest(options: dict[str, Any]) -> int:
    from sharedmask.study.output import largest
    from sharedmask.study.tables import holds_regions

    ending = f".{options['form']}"
    asked = options | {"connectivity": extract.connectivity_of(options, ending)}
    parts = extract.parts_of(extract.given_regions(options), asked, holds_regions(ending))
    cleaning = {name: options[name] for name in ("standardize", "detrend", "low_pass", "high_pass", "t_r")}
    cleaning["detrend"] |= extract.cleans(options)  # confounds, too, take what this takes
    return largest(options["images"], parts, parts.strategy, options["smoothing_fwhm"], **cleaning)


# What a task takes besides its images, measured: Python with numpy and nibabel, and with nilearn.
_INTERPRETER_BYTES = 100 * 2**20
_CLEANING_BYTES = 300 * 2**20
_SPARE = 1.25

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{n_tasks}
#SBATCH --mem={megabytes}M
#SBATCH --cpus-per-task={n_cpus}
#SBATCH --output={folder}/%A_%a.log
{directives}set -eu
exec {command} --shard "$SLURM_ARRAY_TASK_ID/{n_tasks}"
"""


def task_bytes(largest: int, n_jobs: int, cleans: bool) -> int:
    """Memory for a task whose images need at most ``largest`` bytes each, ``n_jobs`` at a time."""
    own = _INTERPRETER_BYTES + (_CLEANING_BYTES if cleans else 0)
    return int(_SPARE * (own + max(n_jobs, 1) * (largest + (own if n_jobs > 1 else 0))))


@dataclass(frozen=True)
class Submission:
    """An array job.

    Examples
    --------
    >>> job = Submission(["extract", "a b.nii"], 4, 2**30, Path("/scratch/logs"), directives=["--time=60"])
    >>> print(job.script)  # doctest: +ELLIPSIS
    #!/bin/bash
    #SBATCH --job-name=sharedmask
    #SBATCH --array=1-4
    #SBATCH --mem=1024M
    #SBATCH --cpus-per-task=1
    #SBATCH --output=/scratch/logs/%A_%a.log
    #SBATCH --time=60
    set -eu
    exec ... -m sharedmask extract 'a b.nii' --shard "$SLURM_ARRAY_TASK_ID/4"
    <BLANKLINE>
    """

    arguments: Sequence[str]  # of ``python -m sharedmask``; each task adds its ``--shard``
    n_tasks: int
    memory: int  # bytes per task
    folder: Path  # for the script and the tasks' logs
    n_cpus: int = 1  # per task
    directives: Sequence[str] = ()  # further options of ``sbatch``
    name: str = "sharedmask"

    @property
    def script(self) -> str:
        """The text of the batch script."""
        if self.n_tasks < 1:
            raise ParameterError(f"an array of {self.n_tasks} tasks has nothing to do")
        for directive in self.directives:
            if not re.fullmatch(r"-\S.*", directive):
                raise ParameterError(f"{directive!r} is no option of sbatch: write --partition=long")
        return _SCRIPT.format(
            name=self.name,
            n_tasks=self.n_tasks,
            megabytes=-(-self.memory // 2**20),
            n_cpus=self.n_cpus,
            folder=self.folder,
            directives="".join(f"#SBATCH {directive}\n" for directive in self.directives),
            command=shlex.join([sys.executable, "-m", "sharedmask", *self.arguments]),
        )

    def submit(self) -> str:
        """Write the script, hand it to SLURM, and give the job's number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.sbatch"
        with atomic_write(path) as temporary:
            temporary.write_text(self.script, encoding="utf-8", errors="surrogateescape")
        try:
            answer = subprocess.run(
                ["sbatch", "--parsable", path], capture_output=True, text=True, check=True
            )
        except FileNotFoundError as error:
            raise SharedMaskError(f"this machine has no sbatch; the script is {path}") from error
        except subprocess.CalledProcessError as error:
            raise SharedMaskError(f"sbatch refused {path}: {error.stderr.strip()}") from error
        return answer.stdout.strip().partition(";")[0]
