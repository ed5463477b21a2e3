"""Training that is killed, spread over processes, repeated over folds, or begun from another model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch

from metaseg_cli.commands.train import show_plan, train
from metaseg_cli.config import TrainConfig
from metaseg_cli.core.model_file import Ensemble, load_model_file, read_card
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError
from tests.common import history, tiny_training

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(prepared: Path, out: Path, *options: str) -> list[str]:
    """A tiny training as a command line."""
    tiny = ["--widths", "4,8,8", "--steps-per-epoch", "3", "--batch-size", "4", "--patch", "32", "--precision", "fp32"]
    return ["-m", "metaseg_cli", "train", "--data", str(prepared), "--out", str(out), *tiny, *options]


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
    whole = command(prepared, tmp_path / "whole", "--epochs", "4", "--quiet")
    subprocess.run([sys.executable, *whole], check=True, env=ONE_THREAD)
    # Somewhere behind the second epoch's checkpoint, or in its writing.
    killed = signalled_at("epoch   2", signal.SIGKILL, command(prepared, tmp_path / "killed", "--epochs", "4"))
    killed.communicate()
    run = only(tmp_path / "killed")
    resume = [sys.executable, "-m", "metaseg_cli", "train", "--resume", str(run), "--quiet"]
    subprocess.run(resume, check=True, env=ONE_THREAD)
    undisturbed = only(tmp_path / "whole")
    a, b = weights(run / "model.safetensors"), weights(undisturbed / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["loss"] for row in history(run)] == [row["loss"] for row in history(undisturbed)]


def test_a_warning_of_the_batch_system_saves_and_says_how_to_go_on(prepared: Path, tmp_path: Path) -> None:
    running = signalled_at("epoch   1", signal.SIGTERM, command(prepared, tmp_path / "runs", "--epochs", "10000"))
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
    alone = command(prepared, tmp_path / "one", *options, "--quiet")
    subprocess.run([sys.executable, *alone], check=True, env=ONE_THREAD)
    done = torchrun(*command(prepared, tmp_path / "two", *options))
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
    done = torchrun(*command(prepared, tmp_path / "runs", "--epochs", "1", "--fold", "77"))
    assert done.returncode != 0
    assert len(re.findall("metaseg: --fold 77 does not exist", done.stderr)) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_all_folds_make_an_ensemble_tuned_out_of_fold(prepared: Path, tmp_path: Path) -> None:
    config = tiny_training(prepared, tmp_path, fold="all", epochs=1)
    result = train(config, Silent())
    assert len(result.folds) >= 2
    card = read_card(result.model)
    assert card.members == len(result.folds)
    network, _ = load_model_file(result.model)
    assert isinstance(network, Ensemble)
    x = torch.randn(1, card.in_channels, 32, 32)
    with torch.inference_mode():
        single = [load_model_file(fold / "model.safetensors")[0](x) for fold in result.folds]
        torch.testing.assert_close(network(x), torch.stack(single).mean(0), rtol=1e-4, atol=1e-5)
    seen = []
    for fold in result.folds:
        with h5py.File(fold / "out_of_fold.h5") as file:
            seen += list(file)
    assert len(seen) == len(set(seen)) == result.validation_cases
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors") if "fold" in p.parent.name}
    again = train(config, Silent())
    assert again.run == result.run
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
def test_a_model_starts_from_another_by_the_names_of_its_sequences(prepared: Path, tmp_path: Path) -> None:
    first = train(tiny_training(prepared, tmp_path / "a", epochs=1), Silent())
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    config = tiny_training(prepared, tmp_path / "b", epochs=1, init=first.run, learning_rate=1e-7, context=1)
    second = train(config, Listening())
    assert any("% of the weights from" in line for line in said)
    mine, theirs = weights(second.model), weights(first.model)
    name = next(n for n, t in mine.items() if t.dim() == 4)
    torch.testing.assert_close(mine[name][:, 1:2], theirs[name], rtol=0, atol=1e-4)  # the slice itself, not a neighbour
    with pytest.raises(ConfigError, match="--model attention-unet"):
        train(tiny_training(prepared, tmp_path / "c", model="nested-unet", init=first.run), Silent())
    with pytest.raises(InputError, match="no such model"):
        train(tiny_training(prepared, tmp_path / "c", init=tmp_path / "nothing.safetensors"), Silent())
    assert not (tmp_path / "c").exists()


def test_the_plan_alone_trains_nothing(prepared: Path, tmp_path: Path) -> None:
    plan = show_plan(tiny_training(prepared, tmp_path / "runs"))
    assert plan.reasons
    assert not (tmp_path / "runs").exists()
    shown = subprocess.run(
        [sys.executable, *command(prepared, tmp_path / "runs", "--plan-only", "--json")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["patch"] == [1, 32, 32]


@pytest.mark.slow
def test_too_little_memory_splits_the_batch_and_says_so(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaseg_cli.core.training.step import TrainStep

    said: list[str] = []
    forward = TrainStep._forward

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    def full(self: TrainStep, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x)

    monkeypatch.setattr(TrainStep, "_forward", full)
    train(tiny_training(prepared, tmp_path, epochs=1, batch_size=4), Listening())
    assert [line for line in said if "out of memory" in line][-1].endswith("4 micro-batches")
    monkeypatch.setattr(
        TrainStep, "_forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    with pytest.raises(InputError, match="--patch"):
        train(tiny_training(prepared, tmp_path / "b", epochs=1), Silent())


def test_tensorboard_is_asked_for_by_name_when_it_is_missing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(tiny_training(prepared, tmp_path / "runs", tensorboard=True), Silent())
    assert not (tmp_path / "runs").exists()


def test_a_run_without_its_data_is_refused_and_a_time_is_kept(prepared: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    result = train(TrainConfig(data=prepared, out=tmp_path, widths=(4, 8), patch=(32,), max_minutes=0.05), Silent())
    assert time.monotonic() - began < 30
    assert result.epochs >= 1
