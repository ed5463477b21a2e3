"""Tasks: ``nox -s check test`` runs them in the environment that is active; ``nox -l`` lists them."""

from __future__ import annotations

import nox

PARALLEL = ("-n", "auto", "--dist", "loadfile")  # a process for each processor; the tests of a file stay together

nox.options.default_venv_backend = "none"
nox.options.sessions = ["check", "test"]


@nox.session
def check(session: nox.Session) -> None:
    """Lint, formatting and types."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def test(session: nox.Session) -> None:
    """The quick tests: a few minutes."""
    session.run("pytest", "-q", *PARALLEL, "-m", "not slow", *session.posargs)


@nox.session(name="test-all")
def test_all(session: nox.Session) -> None:
    """Every test, with the coverage of core."""
    session.run("pytest", "-q", "--cov=metaseg_cli.core", "--cov-fail-under=90", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """One benchmark against peers: nox -s bench -- networks --rounds 3."""
    name, *options = session.posargs or ("networks",)
    session.run("python", f"tests/benchmarks/{name}.py", *options)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into docs/_build; a broken link or example is an error."""
    session.run("python", "docs/make_reference.py")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """20,000 damaged files through every reader."""
    session.run("python", "tests/fuzz/run.py", "--mutants", "20000", *session.posargs)


@nox.session
def kill(session: nox.Session) -> None:
    """200 stops and kills of real calls."""
    session.run("python", "tests/faults/kill.py", "--kills", "200", *session.posargs)
