"""The folder of a training run: the names of its files, how it is named, and which run a command means."""

from __future__ import annotations

import os
import time
from pathlib import Path

from metaseg_cli.core.atomic import clear_abandoned
from metaseg_cli.core.choices import is_network_name, network_name
from metaseg_cli.core.paths import path_exists
from metaseg_cli.errors import InputError, disk_error

MODEL_FILE = "model.safetensors"
RESULT_FILE = "result.json"  # its presence marks a run as finished
CONFIG_FILE = "config.yaml"  # complete: training with it repeats the run
CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_CHECKPOINT_FILE = "checkpoint.before.pt"
HISTORY_FILE = "history.csv"
CURVES_FILE = "curves.png"
PREVIEW_FILE = "validation.png"
LOG_FILE = "log.txt"
ENVIRONMENT_FILE = "environment.json"
TENSORBOARD_FOLDER = "tensorboard"
OUT_OF_FOLD_FILE = "out_of_fold.h5"  # the best model's probabilities of the validation cases
DATA_FILE = "data.json"  # of a cross-validation: the cases it began with

_RUNS_PER_SECOND = 100


def new_run(out: Path, network: str) -> Path:
    """Make a folder in *out*, named after the network and the time. Raises InputError when it cannot be made."""
    clear_abandoned(out.glob("*/"))  # a run that was killed before its first checkpoint is never resumed
    name = f"{network}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, _RUNS_PER_SECOND):
        run = out / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
        except OSError as error:
            raise disk_error(error, run) from error
    raise InputError("a hundred runs began in this second", where=out)


def fold_folder(run: Path, fold: int) -> Path:
    """Return where a cross-validation keeps the run of one fold."""
    return run / f"fold{fold}"


def has_checkpoint(run: Path) -> bool:
    """Return whether *run* was begun and can be resumed."""
    checkpoints = (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE)
    return (run / CONFIG_FILE).exists() and any((run / name).exists() for name in checkpoints)


def finished_runs(runs: Path) -> list[Path]:
    """Return the finished runs under *runs*, newest first."""
    found = [file.parent for file in runs.glob(f"*/{RESULT_FILE}") if (file.parent / MODEL_FILE).exists()]
    return sorted(found, key=lambda run: (run / RESULT_FILE).stat().st_mtime, reverse=True)


def find_model(named: str | Path | None, runs: Path = Path("runs")) -> Path:
    """Return the model file that *named* means: a file, a run, an architecture's newest run, or (None) the newest run.

    Raises InputError with the way to a model when there is none.
    """
    if named is None or (not path_exists(named) and is_network_name(str(named))):
        wanted = network_name(str(named)) if named is not None else ""
        for run in finished_runs(runs):
            if run.name.startswith(wanted):
                return run / MODEL_FILE
        kind = f"finished {wanted} run" if wanted else "finished run"
        raise InputError(
            f"no {kind} found",
            where=runs,
            remedy="train one with metaseg train, try metaseg demo, or name a model file with --model",
        )
    path = Path(named)
    if os.path.isdir(path):
        if not (path / MODEL_FILE).exists():
            raise InputError(f"this folder holds no {MODEL_FILE}", where=path, remedy="name a run's folder")
        return path / MODEL_FILE
    if not path_exists(path):
        raise InputError("no such model", where=path, remedy="name a model file, a run folder, or an architecture")
    return path
