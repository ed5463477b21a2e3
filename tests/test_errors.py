"""Whatever one input raises is its Problem, with a remedy; what nobody expected leaves its traceback."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from metaseg_cli import errors
from metaseg_cli.core.executor import map_cases
from metaseg_cli.errors import ConfigError, InputError, Interrupted, Problem, attempt, decoding, problem_of

FILE = Path("scan.png")


@pytest.mark.parametrize("error", [EOFError(), zlib.error("bad"), TypeError("x"), RecursionError(), KeyError("k")])
def test_whatever_a_decoder_raises_is_an_input_error(error: Exception) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught, decoding(FILE):
        raise error
    assert caught.value.where == FILE
    assert caught.value.remedy
    assert caught.value.__cause__ is error


def test_an_error_of_ours_passes_through_a_decoder_unchanged() -> None:
    with pytest.raises(ConfigError, match="as it was"), decoding(FILE):
        raise ConfigError("as it was")


def test_what_nobody_expected_says_so_and_leaves_its_traceback(tmp_path: Path) -> None:
    def fails() -> None:
        raise ZeroDivisionError("by nobody")

    problem = attempt(fails, FILE, tmp_path / "out")
    assert isinstance(problem, Problem)
    assert "unexpected ZeroDivisionError (by nobody)" in problem.reason
    assert "errors.log" in problem.remedy
    log = (tmp_path / "out" / "errors.log").read_text()
    assert "scan.png" in log
    assert "in fails" in log


def test_what_was_expected_leaves_no_log(tmp_path: Path) -> None:
    problem = problem_of(InputError("cut short", where=Path("a.nii"), remedy="copy it"), FILE, tmp_path)
    assert problem == Problem(file=Path("a.nii"), reason="cut short", remedy="copy it")
    assert problem_of(MemoryError(), FILE, tmp_path).remedy
    full = problem_of(OSError(errno.ENOSPC, "No space left on device", "out/a.png"), FILE, tmp_path)
    assert (full.file, full.reason) == (Path("out/a.png"), "the disk is full")
    assert not list(tmp_path.iterdir())


def test_an_interruption_is_no_problem_of_a_case() -> None:
    def stopped() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        attempt(stopped, FILE, None)


def test_errors_of_ours_travel_between_processes() -> None:
    again = pickle.loads(pickle.dumps(InputError("what", where=FILE, remedy="do")))
    assert (type(again), again.what, again.where, again.remedy) == (InputError, "what", FILE, "do")


def _work(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does for lack of memory, or a decoder that crashes
    if number == 5:
        raise ValueError("five")
    return number


@pytest.mark.parametrize("count", [6, 12])
def test_a_worker_that_dies_costs_the_item_it_worked_on(count: int, tmp_path: Path) -> None:
    results = dict(map_cases(_work, range(count), 2, file_of=lambda n: Path(str(n)), log_folder=tmp_path))
    assert list(results) == list(range(count))
    problems = {n: r for n, r in results.items() if isinstance(r, Problem)}
    assert set(problems) == {3, 5}
    assert "killed" in problems[3].reason
    assert "five" in problems[5].reason
    assert all(results[n] == n for n in results if n not in problems)


_DIES = """
import os, signal, sys, time, types, weakref
import metaseg_cli.__main__ as program

def stop(_):
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        pass

class Thing:
    pass

def run():
    thing = Thing()
    watched = weakref.ref(thing, stop)
    del thing
    time.sleep(5)
    return 0

sys.modules["metaseg_cli.cli"] = types.SimpleNamespace(main=run)
program.main()
"""


def test_a_stop_that_python_drops_while_an_object_dies_is_made_again() -> None:
    done = subprocess.run([sys.executable, "-c", _DIES], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr.startswith("metaseg: interrupted")
    assert "Traceback" not in done.stderr


def test_the_hint_for_an_extra_is_a_command_that_works_from_a_checkout_and_from_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(errors.__file__).parent.parent
    assert errors.install_hint("export") == f"pip install '{root}[export]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "metaseg_cli" / "errors.py"))
    hint = errors.install_hint("cluster")
    assert hint.startswith("pip install 'distributed")
    assert "metaseg" not in hint
