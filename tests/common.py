"""Small things that tests of several packages make alike."""

from __future__ import annotations

import contextlib
import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from metaseg_cli.cli import main
from metaseg_cli.config import TrainConfig
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.postprocessing import Postprocessing

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "metaseg_cli"
APP = PACKAGE / "ui" / "app.py"


def metaseg(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line within this process: what it prints and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    typed = ["metaseg", *map(str, arguments)]
    with (
        patch.object(sys, "argv", typed),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
    ):
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return subprocess.CompletedProcess(typed, code, out.getvalue(), err.getvalue())


def tiny_training(prepared: Path, out: Path, **settings: Any) -> TrainConfig:
    """A training of a few seconds."""
    tiny = {"epochs": 2, "widths": (4, 8, 8), "patch": (32,), "batch_size": 4, "steps_per_epoch": 3, "warmup_steps": 2}
    return TrainConfig(data=prepared, out=out, **{**tiny, **settings})


def train_arguments(prepared: Path, out: Path, *options: str) -> list[str]:
    """Return the arguments after ``python`` of a training of a few seconds."""
    tiny = ["--widths", "4,8,8", "--steps-per-epoch", "3", "--batch-size", "4", "--patch", "32"]
    tiny += ["--precision", "fp32", "--memory-format", "contiguous"]  # what is measured may differ in a busy moment
    return ["-m", "metaseg_cli", "train", "--data", str(prepared), "--out", str(out), *tiny, *options]


def small_card(name: str = "attention-unet", dims: int = 2, norm: str = "batch") -> ModelCard:
    """Of a small network with three regions, temperature and thresholds."""
    return ModelCard(
        name=name,
        in_channels=2,
        out_channels=3,
        dims=dims,
        widths=(4, 8, 8),
        strides=((2,) * dims,) * 2 if dims == 2 else ((1, 2, 2), (2, 2, 2)),
        norm=norm,
        activation="leaky-relu",
        sequences=("t1c", "t2f"),
        regions={"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)},
        preprocessing={"normalisation": "case", "oriented": True, "spacing_mm": [1.0, 1.0, 1.0]},
        patch=(16, 32, 32),
        temperature=1.5,
        postprocessing={"ET": Postprocessing(threshold=0.4, min_size=3)},
    )


def history(run: Path) -> list[dict[str, str]]:
    """The rows of a run's history.csv."""
    return list(csv.DictReader((run / "history.csv").read_text().splitlines()))
