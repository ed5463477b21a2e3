"""Train a network on a prepared folder, or go on with a run that was stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from metaseg_cli.commands.run_folder import (
    CONFIG_FILE,
    Log,
    Recorder,
    environment,
    new_run,
    out_of_fold_file,
    tensorboard_writer,
    write_config,
)
from metaseg_cli.commands.runs import MODEL_FILE, RESULT_FILE, find_model
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import merge_config, read_yaml
from metaseg_cli.core.atomic import atomic_write_text, exclusive_writer
from metaseg_cli.core.cache import CaseRecord, Prepared, open_prepared
from metaseg_cli.core.choices import network_name
from metaseg_cli.core.inference.device import choose_device, free_memory
from metaseg_cli.core.model_file import ModelCard, load_model_file, patient_hash
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Progress, Silent
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.distributed import Group, joined
from metaseg_cli.core.training.engine import Trainer
from metaseg_cli.core.training.plan import Machine, Plan, Wishes, make_plan
from metaseg_cli.core.training.state import Fitted
from metaseg_cli.core.training.transfer import check_alike, take_over
from metaseg_cli.core.training.validation import SizeClassScore
from metaseg_cli.errors import ConfigError, InputError
from metaseg_cli.reports import figures


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
    postprocessing: dict[str, Postprocessing]
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
    network_name(config.model)  # a misspelt name is said before anything is read
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
    if config.resume is not None:
        config = resumed(config)
    budget = Budget(config.max_minutes, clock)
    prepared = open_prepared(config.data)
    fold = int(config.fold)
    training, validation = _cases(prepared, fold)
    device = choose_device(config.device)
    if device.type == "cuda" and group.size > 1:
        device = torch.device("cuda", group.local_rank)
    plan = _plan(prepared, training, validation, config, device, group)
    card = _card(prepared, training, validation, plan, config)
    # Whatever cannot be used is said before there is a run.
    first = _first_weights(config, card)
    tensorboard_writer(config)
    if run is None:
        run = group.led(config.resume or (new_run(config) if group.leads else None))
    assert run is not None
    # Two that train in one folder would write each other's checkpoint.
    with exclusive_writer(run, "metaseg train") if group.leads else nullcontext():
        return _train_in(
            run, config, prepared, (training, validation), plan, card, first, device, progress, group, budget
        )


def _train_in(
    run: Path,
    config: TrainConfig,
    prepared: Prepared,
    cases: tuple[list[CaseRecord], list[CaseRecord]],
    plan: Plan,
    card: ModelCard,
    first: tuple[nn.Module, ModelCard] | None,
    device: torch.device,
    progress: Progress,
    group: Group,
    budget: Budget,
) -> TrainResult:
    """Train in the folder *run*, from its checkpoint where it is resumed."""
    training, validation = cases
    log = Log(run / "log.txt", progress) if group.leads else progress
    if config.resume is None and group.leads:
        write_config(run, config)
        atomic_write_text(run / "environment.json", json.dumps(environment(device, group), indent=1))
    log.say(f"run {run}")
    together = f" by {group.size} processes" if group.size > 1 else ""
    counts = f"{len(training)} cases train, {len(validation)} of fold {config.fold} validate"
    log.say(f"{card.name} on {device}{together}: {counts}")
    for reason in plan.reasons:
        log.say(f"  {reason}")
    if not prepared.patient_key:
        log.say("the prepared folder has no .patient_key: prepare it again, so that evaluate knows the patients again")
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
        on_epoch=Recorder(run, config),
        on_best=lambda examples: figures.save_worst_cases(
            run / "validation.png", [(e.case, e.image, e.reference, e.predicted) for e in examples]
        ),
        # What was measured once must hold when the settings are used again.
        on_numerics=lambda numerics: write_config(
            run,
            dataclasses.replace(
                config,
                precision=numerics.precision,
                layout="channels-last" if numerics.channels_last else "contiguous",
            ),
        ),
        group=group,
        budget=budget,
    )
    if config.resume is not None:
        note = trainer.restore()
        if note:
            log.say(note)
        log.say(f"going on after epoch {trainer.state.epoch}, step {trainer.state.step}")
    elif first is not None:
        transfer = take_over(trainer.model, card, *first)
        trainer.averaged.model.load_state_dict(trainer.model.state_dict())
        log.say(f"{transfer.share:.0%} of the weights from {config.init}")
        for left in transfer.left:
            log.say(f"  {left}")
    with _stopping_politely(trainer), out_of_fold_file(run if group.leads else None) as keep:
        trainer.on_final = keep
        fitted = trainer.fit()
    result = _result(run, fitted, validation, budget.elapsed() / 60)
    if group.leads:
        atomic_write_text(run / RESULT_FILE, json.dumps(dataclasses.asdict(result), indent=1, default=str))
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
        scores=dataclasses.asdict(fitted.tuned.score) if fitted.tuned.score else {},
        by_size=fitted.tuned.by_size,
        unit="mm" if validation and validation[0].spacing_mm else "px",
        postprocessing=fitted.tuned.postprocessing,
        temperature=fitted.tuned.temperature,
        minutes=minutes,
        images_per_second=sum(r.images_per_second for r in last) / max(1, len(last)),
        milliseconds_per_step=fitted.milliseconds,
        precision=fitted.numerics.precision,
        validation_cases=len(validation),
    )


def _first_weights(config: TrainConfig, card: ModelCard) -> tuple[nn.Module, ModelCard] | None:
    """The model that ``--init`` names. Raises when there is none or it cannot be started from."""
    if config.init is None:
        return None
    other, other_card = load_model_file(find_model(config.init))
    if other_card.members > 1:
        raise ConfigError("--init is an ensemble", remedy="name the model of one of its folds")
    check_alike(card, other_card)
    return other, other_card


def _cases(prepared: Prepared, fold: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
    if not 0 <= fold < prepared.folds:
        raise ConfigError(f"--fold {fold} does not exist", remedy=f"the folder has the folds 0 to {prepared.folds - 1}")
    training, validation = prepared.in_fold(fold)
    if not training:
        raise InputError(
            "no case is left to train on", where=prepared.folder, remedy="prepare more patients, each in its own folder"
        )
    if not any(case.lesion_voxels for case in training):
        raise InputError(
            "no training case has any foreground",
            where=prepared.folder,
            remedy="check the masks, or the label values given to metaseg prepare",
        )
    return training, validation


def resumed(config: TrainConfig) -> TrainConfig:
    """The stopped run's own settings; only epochs, minutes, patience and device may be given anew."""
    assert config.resume is not None
    path = config.resume / CONFIG_FILE
    if not path.exists():
        raise InputError("this is not a run", where=config.resume, remedy="name the folder that metaseg train made")
    saved = merge_config(TrainConfig, read_yaml(path), {})
    default = TrainConfig()
    anew = {
        name: getattr(config, name)
        for name in ("epochs", "max_minutes", "patience", "device")
        if getattr(config, name) != getattr(default, name)
    }
    return dataclasses.replace(saved, resume=config.resume, **anew)


def _card(
    prepared: Prepared, training: list[CaseRecord], validation: list[CaseRecord], plan: Plan, config: TrainConfig
) -> ModelCard:
    # Colours of a picture are never missing; sequences of a volume may be, now or when predicting.
    presence = prepared.kind == "volumes" and len(prepared.sequences) > 1
    return ModelCard(
        name=network_name(config.model),
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
        patients=tuple(sorted({patient_hash(prepared.patient_key, case.patient) for case in training}))
        if prepared.patient_key
        else (),
        fingerprint=prepared.fingerprint,
    )


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
