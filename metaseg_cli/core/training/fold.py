"""Train one fold: from settings and a prepared folder to a finished run."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import merge_config, read_yaml
from metaseg_cli.core.atomic import exclusive_writer
from metaseg_cli.core.cache import Prepared, open_prepared
from metaseg_cli.core.choices import network_name
from metaseg_cli.core.counts import counted
from metaseg_cli.core.inference.device import choose_device, free_memory
from metaseg_cli.core.model_file import ModelCard, load_model_file, patient_hash
from metaseg_cli.core.models.network import Network
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.run_folder import CONFIG_FILE, MODEL_FILE, find_model, new_run
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.distributed import ProcessGroup
from metaseg_cli.core.training.experiment import Experiment, FoldData, Session, StopRequest
from metaseg_cli.core.training.plan import DeviceInfo, Plan, PlanOverrides, make_plan
from metaseg_cli.core.training.precision import ComputeFormat, choose_compute_format
from metaseg_cli.core.training.pretrained import check_same_architecture, load_matching_weights
from metaseg_cli.core.training.result import TrainResult, write_result
from metaseg_cli.core.training.run_writer import RunWriter, TrainingCharts, summary_writer_class
from metaseg_cli.core.training.seen_inputs import seen_inputs
from metaseg_cli.core.training.state import FitResult
from metaseg_cli.core.training.trainer import Trainer
from metaseg_cli.errors import ConfigError, InputError

_MEASURING_SHARE = 0.05  # at most this share of the time is spent to find out what is faster
_WORTH_MEASURING = 180.0  # seconds of training below which the measurement costs more than it gains
_RECENT_EPOCHS = 5  # whose mean is the speed that is reported: the first ones warm up


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks for a training: the processes that share it, who listens, who draws, and the clock it goes by."""

    group: ProcessGroup
    progress: Progress
    charts: TrainingCharts
    clock: Callable[[], float] = time.monotonic
    began: float | None = None  # when the command began, on the clock; None: now

    def budget(self, minutes: float | None) -> Budget:
        """Return the time of the whole command."""
        return Budget(minutes, self.clock, self.began)


@dataclass(frozen=True)
class Pretrained:
    """The model that ``--init`` names."""

    network: Network
    card: ModelCard


def plan_fold(config: TrainConfig) -> Plan:
    """Return the plan of ``metaseg train`` without training. Raises ConfigError and InputError as it does."""
    data = fold_data(open_prepared(config.data), 0 if str(config.fold) == "all" else int(config.fold))
    return _make_plan(data, config, choose_device(config.device), ProcessGroup())


def train_fold(
    config: TrainConfig, caller: Caller, run: Path | None = None, budget: Budget | None = None
) -> TrainResult:
    """Train on all folds but one, in *run* or a folder of its own, within *budget* or the minutes of *config*.

    Raises ConfigError and InputError for what cannot be trained, before there is a run; Interrupted after a stop.
    """
    if config.resume is not None:
        config = resumed_config(config)
    group = caller.group
    if budget is None:
        budget = caller.budget(config.max_minutes)
    data = fold_data(open_prepared(config.data), int(config.fold))
    device = _device(config, group)
    plan = _make_plan(data, config, device, group)
    experiment = Experiment(config=config, data=data, plan=plan, card=_card(data, plan, config))
    pretrained = _load_pretrained(experiment)
    summary_writer_class(config)
    if run is None:
        new = config.resume or (new_run(config.out, network_name(config.model)) if group.is_main else None)
        run = group.broadcast(new)
    assert run is not None
    # Two trainings in one folder would write each other's checkpoint.
    with (
        exclusive_writer(run, "metaseg train") if group.is_main else nullcontext(),
        _stop_after_step() as stop,
    ):
        files = RunWriter(run, config, caller.charts, active=group.is_main)
        log = files.log(caller.progress)
        session = Session(device=device, group=group, budget=budget, stop=stop, progress=log)
        trainer = _make_trainer(experiment, session, files, pretrained)
        with files.complete_out_of_fold():
            fitted = trainer.fit()
        result = _result(run, fitted, data, budget.elapsed() / 60)
        if group.is_main:
            write_result(result)
        return result


def fold_data(prepared: Prepared, fold: int) -> FoldData:
    """Return the cases of *fold*. Raises ConfigError and InputError where nothing can be trained on them."""
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
    return FoldData(prepared=prepared, fold=fold, training=tuple(training), validation=tuple(validation))


def resumed_config(config: TrainConfig) -> TrainConfig:
    """Return the stopped run's own settings; only epochs, minutes, patience and device may be given again."""
    assert config.resume is not None
    path = config.resume / CONFIG_FILE
    if not path.exists():
        raise InputError("this is not a run", where=config.resume, remedy="name the folder that metaseg train made")
    saved = merge_config(TrainConfig, read_yaml(path), {})
    default = TrainConfig()
    given = {
        name: getattr(config, name)
        for name in ("epochs", "max_minutes", "patience", "device")
        if getattr(config, name) != getattr(default, name)
    }
    return dataclasses.replace(saved, resume=config.resume, **given)


def _device(config: TrainConfig, group: ProcessGroup) -> torch.device:
    device = choose_device(config.device)
    return torch.device("cuda", group.local_rank) if device.type == "cuda" and group.size > 1 else device


def _make_plan(data: FoldData, config: TrainConfig, device: torch.device, group: ProcessGroup) -> Plan:
    overrides = PlanOverrides(
        dims=None if config.dims == "auto" else int(config.dims),
        context=config.context,
        patch=config.patch,
        batch_size=config.batch_size,
        widths=config.widths,
        steps_per_epoch=config.steps_per_epoch,
        foreground_prior=config.foreground_prior,
    )
    info = DeviceInfo(gpu=device.type == "cuda", memory_bytes=free_memory(device))
    plan = make_plan(
        data.prepared, data.training, data.validation, model=config.model, device=info, overrides=overrides
    )
    plan = group.broadcast(plan)  # the free memory differs from process to process, the plan must not
    if plan.batch_size % group.size:
        size = -(-plan.batch_size // group.size) * group.size
        reason = f"batch {size}: the same for each of {group.size} processes"
        plan = dataclasses.replace(plan, batch_size=size, reasons=(*plan.reasons, reason))
    return plan


def _card(data: FoldData, plan: Plan, config: TrainConfig) -> ModelCard:
    prepared = data.prepared
    # Colours of a picture are never missing; sequences of a volume may be, now or when predicting.
    presence = prepared.kind == "volumes" and len(prepared.sequences) > 1
    patients = {patient_hash(prepared.patient_key, case.patient) for case in data.training if prepared.patient_key}
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
        trained_on=tuple(sorted({case.content for case in data.training})),
        validated_on=tuple(sorted({case.content for case in data.validation})),
        patients=tuple(sorted(patients)),
        fingerprint=prepared.fingerprint,
        inputs=seen_inputs(prepared, data.training),
    )


def _load_pretrained(experiment: Experiment) -> Pretrained | None:
    """Load the model that ``--init`` names. Raises ConfigError and ModelFileError when it cannot be started from."""
    if experiment.config.init is None:
        return None
    network, card = load_model_file(find_model(experiment.config.init))
    if not isinstance(network, Network):
        raise ConfigError("--init is an ensemble", remedy="name the model of one of its folds")
    check_same_architecture(experiment.card, card)
    return Pretrained(network, card)


def _make_trainer(experiment: Experiment, session: Session, files: RunWriter, pretrained: Pretrained | None) -> Trainer:
    """Begin the run *files* writes, or resume it from its checkpoint, and say so."""
    config, say = experiment.config, session.progress.say
    if config.resume is None:
        files.settings(session.device, session.group)
    say(f"run {files.folder}")
    _describe(experiment, session)
    torch.manual_seed(config.seed)
    model = experiment.card.build().to(session.device)
    if config.resume is not None:
        trainer, note = Trainer.from_checkpoint(experiment, session, files, model)
        for line in (note, f"resuming after epoch {trainer.state.epoch}, step {trainer.state.step}"):
            if line:
                say(line)
        return trainer
    if pretrained is not None:
        matched = load_matching_weights(model, experiment.card, pretrained.network, pretrained.card)
        say(f"{matched.fraction:.0%} of the weights from {config.init}")
        for skipped in matched.skipped:
            say(f"  {skipped}")
    compute = _measure_compute_format(experiment, session, model)
    files.measured(compute)
    return Trainer(experiment, session, files, model, compute)


def _describe(experiment: Experiment, session: Session) -> None:
    data, say = experiment.data, session.progress.say
    processes = f" by {session.group.size} processes" if session.group.size > 1 else ""
    counts = f"{counted(len(data.training), 'case')} to train, {len(data.validation)} of fold {data.fold} to validate"
    say(f"{experiment.card.name} on {session.device}{processes}: {counts}")
    for reason in experiment.plan.reasons:
        say(f"  {reason}")
    if not data.prepared.patient_key:
        say(
            "the prepared folder has no .patient_key: prepare it again, so that evaluate recognises the training "
            "patients"
        )


def _measure_compute_format(experiment: Experiment, session: Session, model: Network) -> ComputeFormat:
    """Choose what is faster here, measured on one patch; the same in all processes."""
    plan, card = experiment.plan, experiment.card
    shape = (1 if plan.dims == 3 else 2, card.in_channels, *plan.patch[-plan.dims :])
    patch = torch.zeros(shape, device=session.device)
    limit = session.budget.limit
    most_seconds = _MEASURING_SHARE * limit if limit >= _WORTH_MEASURING else 0.0
    compute, why = choose_compute_format(model, patch, card.norm, experiment.config, most_seconds)
    compute = session.group.broadcast(compute)
    session.progress.say(f"  {compute}: {why}")
    return compute


def _result(run: Path, fitted: FitResult, data: FoldData, minutes: float) -> TrainResult:
    state, selected = fitted.state, fitted.selected
    recent = state.history[-_RECENT_EPOCHS:]
    return TrainResult(
        run=run,
        model=run / MODEL_FILE,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        steps=state.step,
        stopped=fitted.stopped,
        scores=dataclasses.asdict(selected.score) if selected.score else {},
        by_size=selected.by_size,
        unit="mm" if data.validation and data.validation[0].spacing_mm else "px",
        postprocessing=selected.postprocessing,
        operating_point=selected.default,
        operating_points=selected.operating_points,
        froc=selected.froc,
        temperature=selected.temperature,
        minutes=minutes,
        images_per_second=sum(record.images_per_second for record in recent) / max(1, len(recent)),
        milliseconds_per_step=fitted.milliseconds_per_step,
        precision=fitted.compute.precision,
        validation_cases=fitted.validation_cases,
    )


@contextmanager
def _stop_after_step() -> Iterator[StopRequest]:
    """Let Ctrl-C and SIGTERM end the training after its step, with everything saved; a second Ctrl-C ends at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(number: int, frame: object) -> None:
        request.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
