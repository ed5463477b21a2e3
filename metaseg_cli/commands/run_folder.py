"""What a training leaves in its run's folder, each file as soon as it can be written."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import torch
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import dump_yaml
from metaseg_cli.core.atomic import atomic_write_text, check_room
from metaseg_cli.core.choices import network_name
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.training.distributed import Group
from metaseg_cli.core.training.state import EpochRecord
from metaseg_cli.errors import ConfigError, InputError, disk_error
from metaseg_cli.reports import figures

CONFIG_FILE = "config.yaml"
OUT_OF_FOLD = "out_of_fold.h5"  # the best model's probabilities of the validation cases


def new_run(config: TrainConfig) -> Path:
    """A new folder named after the network and the time. Raises InputError when it cannot be made."""
    name = f"{network_name(config.model)}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 100):
        run = config.out / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
        except OSError as error:
            raise disk_error(error, run) from error
    raise InputError("a hundred runs began in this second", where=config.out)


def write_config(run: Path, config: TrainConfig) -> None:
    """``config.yaml``, complete: training with it repeats the run."""
    atomic_write_text(run / CONFIG_FILE, dump_yaml(dataclasses.replace(config, resume=None)))


def environment(device: torch.device, group: Group) -> dict[str, Any]:
    """What the run was made with and on."""
    return {
        "metaseg": metaseg_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "processes": group.size,
    }


class Recorder:
    """Writes ``history.csv`` and ``curves.png`` after every epoch, and TensorBoard's events where they are wanted."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self._run = run
        writer = tensorboard_writer(config)
        self._events = writer(str(run / "tensorboard")) if writer else None

    def __call__(self, history: list[EpochRecord]) -> None:
        columns = [f.name for f in dataclasses.fields(EpochRecord)]
        rows = [dataclasses.asdict(record) for record in history]
        atomic_write_text(self._run / "history.csv", csv_text(rows, columns))
        figures.save_curves(self._run / "curves.png", {c: [getattr(record, c) for record in history] for c in columns})
        if self._events is not None:
            for name in columns[1:]:
                self._events.add_scalar(name, getattr(history[-1], name), history[-1].epoch)
            self._events.flush()


def tensorboard_writer(config: TrainConfig) -> Any:
    """TensorBoard's writer when it is asked for. Raises ConfigError when it is not installed."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("--tensorboard wants tensorboard", remedy="pip install tensorboard") from None
    return SummaryWriter


@contextmanager
def out_of_fold_file(run: Path | None) -> Iterator[Callable[[str, NDArray[np.float16]], None]]:
    """Receives the probabilities of the validation cases one by one; the file appears when all are in it."""
    if run is None:
        yield lambda case, probabilities: None
        return
    temporary = run / f".{OUT_OF_FOLD}"

    def keep(case: str, probabilities: NDArray[np.float16]) -> None:
        check_room(temporary, probabilities.nbytes + 2**20)
        with h5py.File(temporary, "a") as file:
            chunks = (1, 1, *probabilities.shape[2:])
            file.create_dataset(case, data=probabilities, chunks=chunks, **hdf5plugin.LZ4())

    temporary.unlink(missing_ok=True)
    try:
        yield keep
        if temporary.exists():
            temporary.replace(run / OUT_OF_FOLD)
    finally:
        temporary.unlink(missing_ok=True)


class Log:
    """Passes progress on, and keeps what was said in ``log.txt``."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress

    def start(self, task: str, total: int | None, seconds: float | None = None) -> None:
        self._progress.start(task, total, seconds)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.advance(steps, note)

    def say(self, text: str) -> None:
        # A full disk stops the training where it would lose something, and not here.
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._progress.say(text)
