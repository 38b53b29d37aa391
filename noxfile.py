#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2024.10"]
# ///
"""What can be run by name: ``nox -l`` lists it, ``nox -s NAME -- ARGUMENTS`` runs it."""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv|virtualenv"


def _pytest(session, *arguments):
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


@nox.session
def tests(session):
    """As the README has it: all but the long ones."""
    session.install("-e", ".[dev]")
    _pytest(session)


@nox.session(name="long", default=False)
def long_ones(session):
    """Those that it leaves out: kills at every call, forks, races, nilearn's parameters in pairs."""
    session.install("-e", ".[dev]")
    _pytest(session, "-m", "long")


@nox.session(default=False)
def faults(session):
    """Kills at every call, forks, races, no room, forgeries: all of them, for hours."""
    session.install("-e", ".[dev]")
    session.env["SHAREDMASK_SLOW_TESTS"] = "1"
    _pytest(session, "tests/faults")


@nox.session(default=False)
def equality(session):
    """Equal to nibabel and nilearn, the long cases too."""
    session.install("-e", ".[dev]")
    session.env["SHAREDMASK_SLOW_TESTS"] = "1"
    _pytest(session, "tests/equality")


@nox.session
def lint(session):
    """Style, types, and who imports whom."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session(default=False)
def review(session):
    """What Scientific Python asks of a repository, its workflows, and how it is cited."""
    session.install("sp-repo-review[cli]", "zizmor", "cffconvert")
    session.run("repo-review", ".")
    session.run("zizmor", "--offline", "--quiet", ".")
    session.run("cffconvert", "--validate", "-i", "CITATION.cff")


@nox.session(default=False)
def dist(session):
    """What is released, in dist: as it would be shown, and installed from nothing but itself."""
    session.install("build", "twine")
    session.run("python", "-m", "build")
    files = sorted(map(str, Path("dist").glob("sharedmask-*")))
    session.run("twine", "check", "--strict", *files)
    session.install(*(name for name in files if name.endswith(".whl")))
    session.run("sharedmask", "demo", env={"PYTHONSAFEPATH": "1"})


@nox.session(default=False)
def docs(session):
    """Links, commands and examples in the documents and docstrings; the site, in docs/_build."""
    session.install("-e", ".[dev,docs]")
    _pytest(session, "tests/promises/test_docs.py", "tests/promises/test_house.py")
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build", env={"MPLBACKEND": "agg"})
    session.run("python", "docs/links.py", "docs/_build")


@nox.session(name="bench-kernels", default=False)
def bench_kernels(session):
    """Array functions beside a copy, against the stored ratios."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "benchmarks", "kernels")


@nox.session(default=False)
@nox.parametrize("which", ["newest", "pre-release"])
def nilearn(session, which):
    """Maskers and equality with a nilearn that is newer than ours."""
    session.install("-e", ".[dev]")
    session.install("--upgrade", *(["--pre"] if which == "pre-release" else []), "nilearn")
    _pytest(session, "tests/maskers", "tests/contracts/test_masker.py", "tests/equality")


@nox.session(default=False)
def lowest(session):
    """The lowest versions that the requirements name, as ``.ci/lowest`` installs and tries them."""
    session.run(".ci/lowest", external=True)


BARE = (
    "tests/contracts/test_store.py",
    "tests/contracts/test_executor.py",
    "tests/contracts/test_volumes.py",
    "tests/contracts/test_masker.py",
    "tests/regions",
    "tests/maskers",
    "tests/sources",
    "tests/cli/test_extract.py",
    "tests/cli/test_cache.py",
    "tests/cli/test_bids.py",
    "tests/cli/test_demo.py",
    "tests/cli/test_network.py",
    "tests/network/test_batches.py",
    "tests/study/test_bids.py",
    "tests/system/test_files.py::test_gc_sweeps_the_folders_it_is_given",
    "tests/promises/test_platforms.py",
    "tests/promises/test_docs.py::test_the_readme_s_examples_run",
    "tests/promises/test_docs.py::test_the_migration_page_runs_and_its_pairs_agree",
    "tests/promises/test_docs.py::test_the_page_of_lacuna_runs",
    "tests/promises/test_docs.py::test_the_page_of_nifreeze_runs",
)


@nox.session
@nox.parametrize("profile", ["macos", "windows"])
def bare(session, profile):
    """The core without what macOS or Windows lack, as ``tests/helpers/bare.py`` has it."""
    session.install("-e", ".[dev]")
    found = [str(Path("tests/helpers").absolute()), os.environ.get("PYTHONPATH", "")]
    session.env.update(PYTHONPATH=os.pathsep.join(filter(None, found)), BARE_PROFILE=profile)
    _pytest(session, "-m", "not long", *BARE)
    _pytest(session, "-m", "long", "tests/cli/test_network.py", "-k", "killed")


if __name__ == "__main__":
    nox.main()
