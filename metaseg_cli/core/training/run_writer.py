"""What a training leaves in its run beside model and checkpoint, each file as soon as it can be written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import h5py
import hdf5plugin
import numpy as np
import torch
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import dump_yaml
from metaseg_cli.core.atomic import atomic_write_text, check_room
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.run_folder import (
    CONFIG_FILE,
    CURVES_FILE,
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    LOG_FILE,
    OUT_OF_FOLD_FILE,
    PREVIEW_FILE,
    TENSORBOARD_FOLDER,
)
from metaseg_cli.core.training.distributed import ProcessGroup
from metaseg_cli.core.training.full_volume import CasePart, PreviewSlice
from metaseg_cli.core.training.precision import ComputeFormat
from metaseg_cli.core.training.state import EpochRecord
from metaseg_cli.errors import ConfigError


class TrainingCharts(Protocol):
    """Draws what a run shows; core itself draws nothing."""

    def curves(self, path: Path, history: dict[str, list[float]]) -> None:
        """Draw loss and validation scores, one list per column of ``EpochRecord``."""
        ...

    def previews(self, path: Path, slices: list[PreviewSlice], card: ModelCard) -> None:
        """Draw slices with reference and prediction of the regions of *card*."""
        ...


class RunWriter:
    """Writes the files of the run *folder*; in all processes but the main one (*active* False) it writes nothing."""

    def __init__(self, folder: Path, config: TrainConfig, charts: TrainingCharts, *, active: bool) -> None:
        self.folder, self._config, self._charts, self._active = folder, config, charts, active
        writer = summary_writer_class(config) if active else None
        self._events = writer(str(folder / TENSORBOARD_FOLDER)) if writer else None
        self._out_of_fold = folder / f".{OUT_OF_FOLD_FILE}"

    def log(self, progress: Progress) -> Progress:
        """Return *progress* with a copy of its lines in the run's log."""
        return Log(self.folder / LOG_FILE, progress) if self._active else progress

    def settings(self, device: torch.device, group: ProcessGroup) -> None:
        """Write the settings and the environment of a new run."""
        if self._active:
            self._write_config(self._config)
            text = json.dumps(_environment(device, group), indent=1)
            atomic_write_text(self.folder / ENVIRONMENT_FILE, text)

    def measured(self, compute: ComputeFormat) -> None:
        """Write the settings with what was measured once, so that it holds when they are used again."""
        if self._active:
            layout = "channels-last" if compute.channels_last else "contiguous"
            self._write_config(dataclasses.replace(self._config, precision=compute.precision, memory_format=layout))

    def history(self, history: list[EpochRecord]) -> None:
        """Write the table, the curves, and TensorBoard's events of the last epoch."""
        if not self._active:
            return
        columns = [f.name for f in dataclasses.fields(EpochRecord)]
        rows = [dataclasses.asdict(record) for record in history]
        atomic_write_text(self.folder / HISTORY_FILE, csv_text(rows, columns))
        self._charts.curves(self.folder / CURVES_FILE, {c: [row[c] for row in rows] for c in columns})
        if self._events is not None:
            for name in columns[1:]:
                self._events.add_scalar(name, getattr(history[-1], name), history[-1].epoch)
            self._events.flush()

    def previews(self, slices: list[PreviewSlice], card: ModelCard) -> None:
        """Draw validation slices of the best model so far."""
        if self._active:
            self._charts.previews(self.folder / PREVIEW_FILE, slices, card)

    def out_of_fold(self, part: CasePart, probabilities: NDArray[np.float16]) -> None:
        """Keep the probabilities ``(R, Z, Y, X)`` of a validation case, or of some of its slices.

        The file appears at the end of ``complete_out_of_fold``.
        """
        if not self._active:
            return
        check_room(self._out_of_fold, probabilities.nbytes + 2**20)
        with h5py.File(self._out_of_fold, "a") as file:
            chunks = (1, 1, *probabilities.shape[2:])
            kept = file.create_dataset(part.record.case, data=probabilities, chunks=chunks, **hdf5plugin.LZ4())
            kept.attrs["first_slice"] = part.first

    @contextmanager
    def complete_out_of_fold(self) -> Iterator[None]:
        """Publish the probabilities that ``out_of_fold`` receives in the block when it ends without an error."""
        if not self._active:
            yield
            return
        self._out_of_fold.unlink(missing_ok=True)
        try:
            yield
            if self._out_of_fold.exists():
                self._out_of_fold.replace(self.folder / OUT_OF_FOLD_FILE)
        finally:
            self._out_of_fold.unlink(missing_ok=True)

    def _write_config(self, config: TrainConfig) -> None:
        atomic_write_text(self.folder / CONFIG_FILE, dump_yaml(dataclasses.replace(config, resume=None)))


class Log:
    """Passes progress on, and keeps what was said in ``log.txt``."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress

    def start(self, task: str, total: int | None, seconds: float | None = None, unit: str = "step") -> None:
        self._progress.start(task, total, seconds, unit)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.advance(steps, note)

    def within(self, done: int, total: int, unit: str = "window") -> None:
        self._progress.within(done, total, unit)

    def say(self, text: str) -> None:
        # A full disk stops the training where it would lose something, and not here.
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._progress.say(text)


def summary_writer_class(config: TrainConfig) -> Any:
    """Return TensorBoard's writer where it is asked for. Raises ConfigError when it is not installed."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("--tensorboard requires tensorboard", remedy="pip install tensorboard") from None
    return SummaryWriter


def _environment(device: torch.device, group: ProcessGroup) -> dict[str, object]:
    """Return what the run was made with and on."""
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
