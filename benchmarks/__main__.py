"""``python -m benchmarks COMMAND``: one command per module.

A command is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``. Only the one
asked for is imported: what this process has mapped shows in the memory it measures.
"""

import argparse
import sys
from importlib import import_module

_COMMANDS = {
    "experiment": "every way to mask one run with many regions, in time and memory",
    "limits": "what masking costs beside what nothing can be faster than",
    "decode": "one .nii.gz decoded, with and without an index, on more and more cores",
    "scaling": "how the cost grows with masks, voxels, volumes, jobs and images",
    "kernels": "array functions beside a copy, against the stored ratios",
    "core": "time and memory against the bars, in one run",
    "maskers": "the drop-in maskers beside nilearn's, in one run",
    "cohort": "many runs at a time, beside what the cores allow",
    "study": "a preprocessed data set to tables and matrices, beside nilearn in a joblib loop",
    "scale": "what a run costs beside its bytes, with up to a hundred thousand of them",
    "remote": "a run on a server beside the same run here",
    "sharing": "attaching, publishing, travelling as a handle",
    "disk": "writing the disk store, and what a cold region reads from it",
    "cache": "a result found again against computing it",
    "network": "lesions on a connectome, beside the prior approach",
    "prior": "what a memory-efficient loader was to save, beside nibabel's arrays",
    "elements": "a dense series of grayordinates, beside reading, copying and a loop over labels",
    "glm": "a linear model of every voxel, beside nilearn's",
    "frames": "one frame of a long run, all of them, and all folds",
}


def main(argv: list[str]) -> int:
    listed = "\n".join(f"  {name:<12}{summary}" for name, summary in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        epilog=f"commands:\n{listed}\n\nEach has its own --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS)
    name = parser.parse_args(argv[:1]).command
    command = import_module(f"benchmarks.{name}")
    options = argparse.ArgumentParser(prog=f"{parser.prog} {name}", description=_COMMANDS[name])
    command.add_arguments(options)
    exit_code: int = command.run(options.parse_args(argv[1:]))
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
