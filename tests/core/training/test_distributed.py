"""Training processes that are killed, warned, or train one model together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaseg_cli.core.model_file import load_model_file
from tests.common import history, train_arguments

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_model_file(model)[0].state_dict()


def only(runs: Path) -> Path:
    (run,) = [p for p in runs.iterdir() if p.is_dir()]
    return run


def signalled_at(said: str, number: signal.Signals, arguments: list[str]) -> subprocess.Popen[str]:
    """Start a training, and send it the signal as soon as it has said this."""
    process = subprocess.Popen([sys.executable, *arguments], env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if said in line:
            process.send_signal(number)
            break
    return process


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(prepared: Path, tmp_path: Path) -> None:
    whole = train_arguments(prepared, tmp_path / "whole", "--epochs", "4", "--quiet")
    subprocess.run([sys.executable, *whole], check=True, env=ONE_THREAD)
    # Somewhere behind the second epoch's checkpoint, or in its writing.
    killed = signalled_at("epoch   2", signal.SIGKILL, train_arguments(prepared, tmp_path / "killed", "--epochs", "4"))
    killed.communicate()
    run = only(tmp_path / "killed")
    resume = [sys.executable, "-m", "metaseg_cli", "train", "--resume", str(run), "--quiet"]
    subprocess.run(resume, check=True, env=ONE_THREAD)
    undisturbed = only(tmp_path / "whole")
    a, b = weights(run / "model.safetensors"), weights(undisturbed / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["loss"] for row in history(run)] == [row["loss"] for row in history(undisturbed)]


def test_a_warning_of_the_batch_system_saves_and_says_how_to_go_on(prepared: Path, tmp_path: Path) -> None:
    running = signalled_at(
        "epoch   1", signal.SIGTERM, train_arguments(prepared, tmp_path / "runs", "--epochs", "10000")
    )
    _, rest = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "metaseg train --resume" in rest


def torchrun(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _free_port()]
    return subprocess.run(
        [*launcher, *arguments], env=ONE_THREAD, capture_output=True, text=True, timeout=timeout, check=False
    )


def _free_port() -> str:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_two_processes_learn_like_one(prepared: Path, tmp_path: Path) -> None:
    options = ("--epochs", "3", "--norm", "none", "--no-augment", "--loss", "focal", "--hard-share", "0")
    alone = train_arguments(prepared, tmp_path / "one", *options, "--quiet")
    subprocess.run([sys.executable, *alone], check=True, env=ONE_THREAD)
    done = torchrun(*train_arguments(prepared, tmp_path / "two", *options))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = only(tmp_path / "one"), only(tmp_path / "two")
    assert "by 2 processes" in (two / "log.txt").read_text()
    losses = [[float(row["loss"]) for row in history(run)] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    a, b = weights(one / "model.safetensors"), weights(two / "model.safetensors")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-4)
    assert len(re.findall(r"epoch +1 ", done.stderr)) == 1  # only the first process speaks


@pytest.mark.slow
def test_a_dying_process_ends_all_with_one_message(prepared: Path, tmp_path: Path) -> None:
    done = torchrun(*train_arguments(prepared, tmp_path / "runs", "--epochs", "1", "--fold", "77"))
    assert done.returncode != 0
    assert len(re.findall("metaseg: --fold 77 does not exist", done.stderr)) == 1
    assert not (tmp_path / "runs").exists()
