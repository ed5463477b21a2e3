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

import h5py
import hdf5plugin
import numpy as np
import torch
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.commands.runs import MODEL_FILE, RESULT_FILE, find_model
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import dump_yaml, layered, read_yaml
from metaseg_cli.core.cache import CaseRecord, Prepared, open_prepared
from metaseg_cli.core.inference.device import choose_device, free_memory
from metaseg_cli.core.model_file import ModelCard, load_model_file, patient_hash
from metaseg_cli.core.models.names import model_name
from metaseg_cli.core.progress import Progress, Silent
from metaseg_cli.core.training.distributed import Group, joined
from metaseg_cli.core.training.engine import EpochRecord, Fitted, Trainer
from metaseg_cli.core.training.plan import Machine, Plan, Wishes, make_plan
from metaseg_cli.core.training.transfer import take_over
from metaseg_cli.core.training.validation import SizeClassScore
from metaseg_cli.core.whole_file import write_text_whole
from metaseg_cli.errors import ConfigError, InputError
from metaseg_cli.reports import figures

CONFIG_FILE = "config.yaml"
OUT_OF_FOLD = "out_of_fold.h5"  # the best model's probabilities of the validation cases


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
    by_size: tuple[SizeClassScore, ...]
    unit: str  # of the size classes: mm or px
    threshold: float
    smallest_lesion_voxels: int
    temperature: float
    minutes: float
    images_per_second: float
    milliseconds_per_step: dict[str, float]
    precision: str
    validation_cases: int
    folds: tuple[Path, ...] = ()  # the runs whose models the ensemble holds


def show_plan(config: TrainConfig) -> Plan:
    """What ``metaseg train --plan-only`` shows. Raises ConfigError and InputError as ``train`` does."""
    prepared = open_prepared(config.data)
    training, validation = _cases(prepared, 0 if str(config.fold) == "all" else int(config.fold))
    return _plan(prepared, training, validation, config, choose_device(config.device), Group())


def train(config: TrainConfig, progress: Progress, clock: Callable[[], float] = time.monotonic) -> TrainResult:
    """Run ``metaseg train``; *clock* (seconds) is what ``--max-minutes`` goes by.

    Under ``torchrun`` all processes train one model and the first one writes. Raises ConfigError and InputError for
    what cannot be trained, Interrupted after Ctrl-C or SIGTERM.
    """
    model_name(config.model)  # a misspelt name is said before anything is read
    with joined(config.device) as group:
        listener = progress if group.leads else Silent()
        if str(config.fold) == "all":
            from metaseg_cli.commands.cross_validation import cross_validate

            return cross_validate(config, listener, group, clock)
        return train_fold(config, listener, group, clock)


def train_fold(
    config: TrainConfig, progress: Progress, group: Group, clock: Callable[[], float], run: Path | None = None
) -> TrainResult:
    """Train on all folds but one, in *run* or a folder of its own."""
    began = clock()
    if config.resume is not None:
        config = resumed(config)
    prepared = open_prepared(config.data)
    fold = int(config.fold)
    training, validation = _cases(prepared, fold)
    device = choose_device(config.device)
    if device.type == "cuda" and group.size > 1:
        device = torch.device("cuda", group.local_rank)
    plan = _plan(prepared, training, validation, config, device, group)
    card = _card(prepared, training, validation, plan, config)
    _import_tensorboard(config)
    if run is None:
        run = group.led(config.resume or (new_run(config) if group.leads else None))
    assert run is not None
    log = _Log(run / "log.txt", progress) if group.leads else progress
    if config.resume is None and group.leads:
        _write_config(run, config)
        write_text_whole(run / "environment.json", json.dumps(_environment(device, group), indent=1))
    log.say(f"run {run}")
    together = f" by {group.size} processes" if group.size > 1 else ""
    log.say(
        f"{card.name} on {device}{together}: {len(training)} cases train, {len(validation)} of fold {fold} validate"
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
        progress=log,
        on_epoch=_Recorder(run, config),
        on_best=lambda examples: figures.save_worst_cases(
            run / "validation.png", [(e.case, e.image, e.reference, e.predicted) for e in examples]
        ),
        # What was measured once must hold when the settings are used again.
        on_setting=lambda setting: _write_config(
            run,
            dataclasses.replace(
                config,
                precision=setting.precision,
                layout="channels-last" if setting.channels_last else "contiguous",
            ),
        ),
        group=group,
        clock=clock,
    )
    trainer.began = began
    if config.resume is not None:
        note = trainer.restore()
        if note:
            log.say(note)
        log.say(f"going on after epoch {trainer.state.epoch}, step {trainer.state.step}")
    elif config.init is not None:
        _start_from(config.init, trainer, log)
    with _stopping_politely(trainer), _out_of_fold_file(run if group.leads else None) as keep:
        trainer.on_final = keep
        fitted = trainer.fit()
    result = _result(run, fitted, validation, (fitted.state.seconds + clock() - trainer.began) / 60)
    if group.leads:
        write_text_whole(run / RESULT_FILE, json.dumps(dataclasses.asdict(result), indent=1, default=str))
    return result


def _plan(
    prepared: Prepared,
    training: list[CaseRecord],
    validation: list[CaseRecord],
    config: TrainConfig,
    device: torch.device,
    group: Group,
) -> Plan:
    plan = make_plan(
        prepared,
        training,
        validation,
        model=config.model,
        machine=Machine(gpu=device.type == "cuda", memory_bytes=free_memory(device)),
        wishes=Wishes(
            dims=None if config.dims == "auto" else int(config.dims),
            context=config.context,
            patch=config.patch,
            batch_size=config.batch_size,
            widths=config.widths,
            iterations_per_epoch=config.steps_per_epoch,
            foreground_prior=config.foreground_prior,
        ),
    )
    plan = group.led(plan)  # what is free differs from process to process, the plan must not
    if plan.batch_size % group.size:
        size = -(-plan.batch_size // group.size) * group.size
        reason = f"batch {size}: the same for each of {group.size} processes"
        plan = dataclasses.replace(plan, batch_size=size, reasons=(*plan.reasons, reason))
    return plan


def _result(run: Path, fitted: Fitted, validation: list[CaseRecord], minutes: float) -> TrainResult:
    state = fitted.state
    last = state.history[-5:]
    return TrainResult(
        run=run,
        model=run / MODEL_FILE,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        steps=state.step,
        stopped=fitted.stopped,
        scores=dataclasses.asdict(fitted.score) if fitted.score else {},
        by_size=fitted.by_size,
        unit="mm" if validation and validation[0].spacing_mm else "px",
        threshold=fitted.postprocessing.threshold,
        smallest_lesion_voxels=fitted.postprocessing.smallest_lesion_voxels,
        temperature=fitted.temperature,
        minutes=minutes,
        images_per_second=sum(r.images_per_second for r in last) / max(1, len(last)),
        milliseconds_per_step=fitted.milliseconds,
        precision=fitted.setting.precision,
        validation_cases=len(validation),
    )


def _start_from(init: Path, trainer: Trainer, log: Progress) -> None:
    path = find_model(init)
    other, other_card = load_model_file(path)
    if other_card.members > 1:
        raise ConfigError("--init is an ensemble", remedy="name the model of one of its folds")
    transfer = take_over(trainer.model, trainer.card, other, other_card)
    trainer.averaged.model.load_state_dict(trainer.model.state_dict())
    log.say(f"{transfer.share:.0%} of the weights from {path}")
    for note in transfer.left:
        log.say(f"  {note}")


def _cases(prepared: Prepared, fold: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
    if not 0 <= fold < prepared.folds:
        raise ConfigError(f"--fold {fold} does not exist", remedy=f"the folder has the folds 0 to {prepared.folds - 1}")
    training, validation = prepared.in_fold(fold)
    if not training:
        raise InputError(
            "no case is left to train on", where=prepared.folder, remedy="prepare more patients, each in its own folder"
        )
    return training, validation


def resumed(config: TrainConfig) -> TrainConfig:
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


def new_run(config: TrainConfig) -> Path:
    """A new folder named after the network and the time. Raises InputError when it cannot be made."""
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
        in_channels=len(prepared.sequences) * (2 * plan.context + 1 + (1 if presence else 0)),
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
        context=plan.context,
        patch=plan.patch,
        deep_supervision=config.deep_supervision,
        foreground_prior=plan.foreground_prior,
        trained_on=tuple(sorted({case.content for case in training})),
        validated_on=tuple(sorted({case.content for case in validation})),
        patients=tuple(sorted({patient_hash(prepared.dataset_id, case.patient) for case in training})),
        dataset_id=prepared.dataset_id,
        fingerprint=prepared.fingerprint,
    )


def _write_config(run: Path, config: TrainConfig) -> None:
    write_text_whole(run / CONFIG_FILE, dump_yaml(dataclasses.replace(config, resume=None)))


def _environment(device: torch.device, group: Group) -> dict[str, Any]:
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


class _Recorder:
    """Writes ``history.csv`` and ``curves.png`` after every epoch, and TensorBoard's events where they are wanted."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self._run = run
        self._writer = _import_tensorboard(config)
        self._events = self._writer(str(run / "tensorboard")) if self._writer else None

    def __call__(self, history: list[EpochRecord]) -> None:
        columns = [f.name for f in dataclasses.fields(EpochRecord)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in history)
        write_text_whole(self._run / "history.csv", text.getvalue())
        figures.save_curves(self._run / "curves.png", {c: [getattr(record, c) for record in history] for c in columns})
        if self._events is not None:
            for name in columns[1:]:
                self._events.add_scalar(name, getattr(history[-1], name), history[-1].epoch)
            self._events.flush()


def _import_tensorboard(config: TrainConfig) -> Any:
    """TensorBoard's writer when it is asked for. Raises ConfigError when it is not installed."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("--tensorboard wants tensorboard", remedy="pip install tensorboard") from None
    return SummaryWriter


@contextmanager
def _out_of_fold_file(run: Path | None) -> Iterator[Callable[[str, NDArray[np.float16]], None]]:
    """Receives the probabilities of the validation cases one by one; the file appears when all are in it."""
    if run is None:
        yield lambda case, probabilities: None
        return
    temporary = run / f".{OUT_OF_FOLD}"

    def keep(case: str, probabilities: NDArray[np.float16]) -> None:
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
