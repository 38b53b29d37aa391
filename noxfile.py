"""What can be run by name: ``nox -l`` lists it, ``nox -s NAME -- ARGUMENTS`` runs it."""

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"


def _pytest(session, *arguments):
    session.run("python", "-m", "pytest", *arguments, *session.posargs)


@nox.session
def tests(session):
    """As the README has it: all but the long ones."""
    session.install("-e", ".[dev]")
    _pytest(session)


@nox.session(name="long")
def long_ones(session):
    """Those that it leaves out: kills at every call, forks, races, nilearn's parameters in pairs."""
    session.install("-e", ".[dev]")
    _pytest(session, "-m", "long")


@nox.session
def faults(session):
    """Kills at every call, forks, races, no room, forgeries."""
    session.install("-e", ".[dev]")
    _pytest(session, "tests/faults")


@nox.session
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


@nox.session
def docs(session):
    """Links, commands and examples in the documents and docstrings; the site, in docs/_build."""
    session.install("-e", ".[dev,docs]")
    _pytest(session, "tests/promises/test_docs.py", "tests/promises/test_house.py")
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build", env={"MPLBACKEND": "agg"})


@nox.session(name="bench-kernels")
def bench_kernels(session):
    """Array functions beside a copy, against the stored ratios."""
    session.install("-e", ".[dev]")
    session.run("python", "-m", "benchmarks", "kernels")


@nox.session
@nox.parametrize("which", ["newest", "pre-release"])
def nilearn(session, which):
    """Maskers and equality with a nilearn that is newer than ours."""
    session.install("-e", ".[dev]")
    session.install("--upgrade", *(["--pre"] if which == "pre-release" else []), "nilearn")
    _pytest(session, "tests/maskers", "tests/contracts/test_masker.py", "tests/equality")


@nox.session
def lowest(session):
    """The lowest versions that the requirements name, as ``.ci/lowest`` installs and tries them."""
    session.run(".ci/lowest", external=True)
