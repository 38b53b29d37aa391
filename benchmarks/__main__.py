"""``python -m benchmarks COMMAND``: one command per module.

A command is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``. Only the one
asked for is imported: what this process has mapped shows in the memory it measures.
"""

import argparse
import sys
from importlib import import_module

_COMMANDS = {
    "core": "time and memory against the bars, in one run",
    "maskers": "the drop-in maskers beside nilearn's, in one run",
    "sharing": "attaching, publishing, travelling as a handle",
    "disk": "writing the disk store, and what a cold region reads from it",
    "cache": "a result found again against computing it",
    "frames": "one frame of a long run, all of them, and all folds",
}


def main(argv: list[str]) -> int:
    listed = "\n".join(f"  {name:<10}{summary}" for name, summary in _COMMANDS.items())
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
