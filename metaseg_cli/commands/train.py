"""Train a network on a prepared folder, or go on with a run that was stopped."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import metaseg_cli
from metaseg_cli.commands.runs import MODEL_FILE, RESULT_FILE
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import dump_yaml, layered, read_yaml
from metaseg_cli.core.cache import CaseRecord, Prepared, open_prepared
from metaseg_cli.core.inference.device import choose_device, choose_precision
from metaseg_cli.core.model_file import ModelCard, patient_hash
from metaseg_cli.core.models.names import model_name
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.training.engine import EpochRecord, Trainer
from metaseg_cli.core.training.plan import Plan, make_plan
from metaseg_cli.core.whole_file import write_text_whole
from metaseg_cli.errors import ConfigError, InputError
from metaseg_cli.reports import figures

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the run lies and how good its best model is on the validation fold."""

    run: Path
    model: Path
    epochs: int
    best_epoch: int
    steps: int
    stopped: str
    scores: dict[str, float]
    threshold: float
    smallest_lesion_voxels: int
    minutes: float
    images_per_second: float
    validation_cases: int


def train(config: TrainConfig, progress: Progress, clock: Callable[[], float] = time.monotonic) -> TrainResult:
    """Run ``metaseg train``; *clock* (seconds) is what ``--max-minutes`` goes by.

    Raises ConfigError and InputError for what cannot be trained, Interrupted after Ctrl-C or SIGTERM.
    """
    began = clock()
    model_name(config.model)  # a misspelt name is said before anything is read
    if config.resume is not None:
        config = _resumed(config)
    prepared = open_prepared(config.data)
    training, validation = _cases(prepared, config.fold)
    plan = make_plan(
        prepared,
        training,
        model=config.model,
        dims=None if config.dims == "auto" else int(config.dims),
        patch_size=config.patch or None,
        batch_size=config.batch_size,
        widths=config.widths or None,
        iterations_per_epoch=config.steps_per_epoch,
    )
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    run = config.resume or _new_run(config)
    log = _Log(run / "log.txt", progress)
    card = _card(prepared, training, validation, plan, config)
    if config.resume is None:
        write_text_whole(run / CONFIG_FILE, dump_yaml(dataclasses.replace(config, resume=None)))
        write_text_whole(run / "environment.json", json.dumps(_environment(device, precision), indent=1))
    log.say(f"run {run}")
    log.say(
        f"{card.name}, {plan.dims}D, on {device} in {precision}: {len(training)} cases train, "
        f"{len(validation)} of fold {config.fold} validate"
    )
    for reason in plan.reasons:
        log.say(f"  {reason}")
    trainer = Trainer(
        run,
        prepared,
        training,
        validation,
        plan,
        config,
        card,
        device=device,
        precision=precision,
        progress=log,
        on_epoch=lambda history: _write_history(run, history),
        clock=clock,
    )
    trainer.began = began
    if config.resume is not None:
        trainer.restore()
        log.say(f"going on after epoch {trainer.state.epoch}")
    with _stopping_politely(trainer):
        fitted = trainer.fit()
    state = fitted.state
    result = TrainResult(
        run=run,
        model=run / MODEL_FILE,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        steps=state.step,
        stopped=fitted.stopped,
        scores=dataclasses.asdict(fitted.score) if fitted.score else {},
        threshold=fitted.postprocessing.threshold,
        smallest_lesion_voxels=fitted.postprocessing.smallest_lesion_voxels,
        minutes=(state.seconds + clock() - trainer.began) / 60,
        images_per_second=sum(r.images_per_second for r in state.history[-5:]) / max(1, len(state.history[-5:])),
        validation_cases=len(validation),
    )
    write_text_whole(run / RESULT_FILE, json.dumps(dataclasses.asdict(result), indent=1, default=str))
    return result


def _cases(prepared: Prepared, fold: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
    if not 0 <= fold < prepared.folds:
        raise ConfigError(f"--fold {fold} does not exist", remedy=f"the folder has the folds 0 to {prepared.folds - 1}")
    training, validation = prepared.in_fold(fold)
    if not training:
        raise InputError(
            "no case is left to train on", where=prepared.folder, remedy="prepare more patients, each in its own folder"
        )
    return training, validation


def _resumed(config: TrainConfig) -> TrainConfig:
    """The stopped run's own settings; only epochs, minutes, patience and device may be given anew."""
    assert config.resume is not None
    path = config.resume / CONFIG_FILE
    if not path.exists():
        raise InputError("this is not a run", where=config.resume, remedy="name the folder that metaseg train made")
    saved = layered(TrainConfig, read_yaml(path), {})
    default = TrainConfig()
    anew = {
        name: getattr(config, name)
        for name in ("epochs", "max_minutes", "patience", "device")
        if getattr(config, name) != getattr(default, name)
    }
    return dataclasses.replace(saved, resume=config.resume, **anew)


def _new_run(config: TrainConfig) -> Path:
    name = f"{model_name(config.model)}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 100):
        run = config.out / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"cannot be made ({error.strerror})", where=run, remedy="choose another --out") from error
    raise InputError("a hundred runs began in this second", where=config.out)


def _card(
    prepared: Prepared, training: list[CaseRecord], validation: list[CaseRecord], plan: Plan, config: TrainConfig
) -> ModelCard:
    # Colours of a picture are never missing; sequences of a volume may be, now or when predicting.
    presence = prepared.kind == "volumes" and len(prepared.sequences) > 1
    return ModelCard(
        name=model_name(config.model),
        in_channels=len(prepared.sequences) * (2 if presence else 1),
        out_channels=len(prepared.regions),
        dims=plan.dims,
        widths=plan.widths,
        strides=plan.strides,
        norm=config.norm,
        activation=config.activation,
        sequences=prepared.sequences,
        regions=prepared.regions,
        preprocessing=prepared.preprocessing.record(),
        file_channels=prepared.file_channels,
        presence=presence,
        patch=plan.patch,
        deep_supervision=config.deep_supervision,
        foreground_prior=plan.foreground_prior,
        trained_on=tuple(sorted({case.content for case in training})),
        validated_on=tuple(sorted({case.content for case in validation})),
        patients=tuple(sorted({patient_hash(prepared.dataset_id, case.patient) for case in training})),
        dataset_id=prepared.dataset_id,
        fingerprint=prepared.fingerprint,
    )


def _environment(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "metaseg": metaseg_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


def _write_history(run: Path, history: list[EpochRecord]) -> None:
    columns = [f.name for f in dataclasses.fields(EpochRecord)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(dataclasses.asdict(record) for record in history)
    write_text_whole(run / "history.csv", text.getvalue())
    figures.save_curves(run / "curves.png", {c: [getattr(record, c) for record in history] for c in columns})


class _Log:
    """Passes progress on, and keeps what was said in ``log.txt``."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress

    def start(self, task: str, total: int | None) -> None:
        self._progress.start(task, total)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.advance(steps, note)

    def say(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._progress.say(text)


@contextmanager
def _stopping_politely(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the step end and everything be saved; a second Ctrl-C ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        trainer.ask_to_stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
