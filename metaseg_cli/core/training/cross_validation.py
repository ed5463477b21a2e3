"""A model for each fold, then their ensemble, whose post-processing is selected on out-of-fold predictions."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  makes LZ4 known to h5py

from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import dump_yaml, merge_config, read_yaml
from metaseg_cli.core.atomic import atomic_write_text, exclusive_writer
from metaseg_cli.core.cache import Prepared, open_prepared, region_masks
from metaseg_cli.core.choices import network_name
from metaseg_cli.core.counts import counted
from metaseg_cli.core.model_file import Ensemble, ModelCard, load_model_file, save_model
from metaseg_cli.core.run_folder import (
    CONFIG_FILE,
    DATA_FILE,
    MODEL_FILE,
    OUT_OF_FOLD_FILE,
    RESULT_FILE,
    fold_folder,
    has_checkpoint,
    new_run,
)
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.detections import CaseDetections, detect
from metaseg_cli.core.training.distributed import ProcessGroup
from metaseg_cli.core.training.fold import Caller, resumed_config, train_fold
from metaseg_cli.core.training.full_volume import CasePart
from metaseg_cli.core.training.result import TrainResult, write_result
from metaseg_cli.core.training.seen_inputs import seen_inputs
from metaseg_cli.core.training.select_postprocessing import (
    SelectedPostprocessing,
    select_postprocessing,
    validation_of,
)
from metaseg_cli.core.typed_json import build, read_json
from metaseg_cli.errors import ConfigError, InputError, Interrupted, decoding

_COMBINING_SHARE = 0.05  # of the time, kept for the ensemble


@dataclass(frozen=True, kw_only=True)
class _FoldResult:
    """What the ensemble's result needs of each fold's ``result.json``."""

    epochs: int
    steps: int
    unit: str
    minutes: float
    images_per_second: float
    precision: str


def cross_validate(config: TrainConfig, caller: Caller) -> TrainResult:
    """Train every fold that is not finished, in ``fold0``, ``fold1``, … of one run, and make their ensemble.

    The minutes of *config* are those of all folds and of the ensemble together; where they end early, the last folds
    are left for another call.

    The same call again continues the newest run of the same settings on the same data; finished folds stay. Raises
    InputError when the cases changed in between.
    """
    if config.resume is not None:
        config = resumed_config(config)
    group = caller.group
    prepared = open_prepared(config.data)
    run = group.broadcast(
        (config.resume or _unfinished(config, prepared) or _begin(config, prepared)) if group.is_main else None
    )
    assert run is not None
    config = dataclasses.replace(config, resume=None)
    with exclusive_writer(run, "metaseg train") if group.is_main else nullcontext():
        _check_data(run, prepared)
        budget = caller.budget(config.max_minutes)
        finished = [_result_of(run, fold) for fold in range(prepared.folds) if _is_finished(run, fold)]
        budget.previous_sessions = 60 * sum(each.minutes for each in finished)
        results: list[_FoldResult] = []
        for fold in range(prepared.folds):
            if not _is_finished(run, fold) and not _is_time_for_another(results, budget, group):
                caller.progress.say(
                    f"no time is left for fold {fold} and those after it; for all: "
                    f"metaseg train --resume {run} --max-minutes N"
                )
                break
            results.append(_train_or_skip(run, fold, config, prepared, caller, budget))
        result = _combine(run, prepared, results, budget, config.operating_point)
        if group.is_main:
            write_result(result)
        return result


def _is_time_for_another(results: Sequence[_FoldResult], budget: Budget, group: ProcessGroup) -> bool:
    """Return, alike in all processes, whether as much is left as the shortest of the folds before took."""
    if not results:
        return True
    return budget.is_time_for(group.all_reduce_max([budget.elapsed()])[0], 60 * min(each.minutes for each in results))


def _train_or_skip(
    run: Path, fold: int, config: TrainConfig, prepared: Prepared, caller: Caller, budget: Budget
) -> _FoldResult:
    """Train *fold* unless it is finished, in its part of what is left of *budget*."""
    folder = fold_folder(run, fold)
    if _is_finished(run, fold):
        caller.progress.say(f"fold {fold} is finished: {folder}")
        return _result_of(run, fold)
    caller.progress.say(f"fold {fold} of {prepared.folds}")
    # A fold that was begun has a checkpoint from its first step on.
    resume = folder if has_checkpoint(folder) else None
    if caller.group.is_main:
        folder.mkdir(exist_ok=True)
    unfinished = sum(not _is_finished(run, each) for each in range(fold, prepared.folds))
    own = budget.part(1 / unfinished, kept=_COMBINING_SHARE)
    try:
        train_fold(dataclasses.replace(config, fold=str(fold), resume=resume), caller, folder, own)
    except Interrupted as stop:
        raise Interrupted(
            f"fold {fold} of {prepared.folds}: {stop.what}",
            where=run,
            remedy=f"resume all folds with: metaseg train --resume {run}",
        ) from stop
    budget.previous_sessions += own.previous_sessions
    return _result_of(run, fold)


def _is_finished(run: Path, fold: int) -> bool:
    return (fold_folder(run, fold) / RESULT_FILE).exists()


def _result_of(run: Path, fold: int) -> _FoldResult:
    result, remedy = fold_folder(run, fold) / RESULT_FILE, "remove it, and run the same command again"
    values = read_json(result, remedy=remedy)
    with decoding(result, "not the result of a training", remedy=remedy):
        return build(_FoldResult, values)


def _begin(config: TrainConfig, prepared: Prepared) -> Path:
    run = new_run(config.out, network_name(config.model))
    atomic_write_text(run / CONFIG_FILE, dump_yaml(dataclasses.replace(config, resume=None)))
    atomic_write_text(run / DATA_FILE, json.dumps({"id": prepared.dataset_id, "cases": _contents(prepared)}))
    return run


def _unfinished(config: TrainConfig, prepared: Prepared) -> Path | None:
    """Return the newest run that these very settings began on this very data."""
    candidates = sorted(config.out.glob(f"*/{DATA_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in candidates:
        same = _settings_of(path.parent) == dataclasses.replace(config, resume=None)
        if same and _cases_of(path) == _contents(prepared):
            return path.parent
    return None


def _settings_of(run: Path) -> TrainConfig | None:
    """Return the settings that *run* was begun with; newer ones have their default. None if they cannot be read."""
    path = run / CONFIG_FILE
    try:
        return merge_config(TrainConfig, read_yaml(path), {}) if path.exists() else None
    except ConfigError:
        return None


def _contents(prepared: Prepared) -> list[list[object]]:
    return [[case.case, case.fold, case.content] for case in prepared.cases]


def _cases_of(path: Path) -> object:
    return read_json(path, remedy="start a new run without --resume").get("cases")


def _check_data(run: Path, prepared: Prepared) -> None:
    if _cases_of(run / DATA_FILE) != _contents(prepared):
        raise InputError(
            "the prepared folder is not the one this run began with",
            where=prepared.folder,
            remedy="start a new run without --resume",
        )


def _combine(
    run: Path, prepared: Prepared, results: Sequence[_FoldResult], budget: Budget, operating_point: str
) -> TrainResult:
    """Write the ensemble file, its post-processing and temperature selected on out-of-fold predictions.

    Where *budget* ends, on those that are read until then, by turns of each fold.
    """
    folds = tuple(fold_folder(run, fold) for fold in range(len(results)))
    cases: list[CaseDetections] = []
    by_turns = itertools.zip_longest(*(_out_of_fold(fold, prepared) for fold in folds))
    for found in (each for turn in by_turns for each in turn if each is not None):
        cases.append(found)
        if not budget.is_time_for(budget.elapsed(), 0.0):
            break
    smallest = prepared.smallest_lesions([case for case in prepared.cases if case.labelled and case.split != "test"])
    selected = select_postprocessing(cases, smallest, tuple(prepared.regions), operating_point)
    assert selected.score is not None
    _write_ensemble(run, prepared, folds, selected)
    return TrainResult(
        run=run,
        model=run / MODEL_FILE,
        epochs=sum(each.epochs for each in results),
        best_epoch=0,
        steps=sum(each.steps for each in results),
        stopped=f"{'' if len(folds) == prepared.folds else f'{len(folds)} of '}{counted(prepared.folds, 'fold')}",
        scores=dataclasses.asdict(selected.score),
        by_size=selected.by_size,
        unit=results[0].unit,
        postprocessing=selected.postprocessing,
        operating_point=selected.default,
        operating_points=selected.operating_points,
        froc=selected.froc,
        temperature=selected.temperature,
        minutes=budget.elapsed() / 60,
        images_per_second=sum(each.images_per_second for each in results) / len(results),
        milliseconds_per_step={},
        precision=results[0].precision,
        validation_cases=len(cases),
        folds=folds,
    )


def _write_ensemble(run: Path, prepared: Prepared, folds: Sequence[Path], selected: SelectedPostprocessing) -> None:
    members = [load_model_file(fold / MODEL_FILE) for fold in folds]
    trained = {content for _, card in members for content in card.trained_on}
    inputs = seen_inputs(prepared, [case for case in prepared.cases if case.content in trained])
    card = dataclasses.replace(_ensemble_card([card for _, card in members], selected), inputs=inputs)
    networks = [network for network, _ in members]
    save_model(run / MODEL_FILE, Ensemble(networks) if len(networks) > 1 else networks[0], card)


def _ensemble_card(cards: Sequence[ModelCard], selected: SelectedPostprocessing) -> ModelCard:
    return dataclasses.replace(
        cards[0],
        members=len(cards),
        postprocessing=selected.postprocessing,
        operating_point=selected.default,
        operating_points=selected.operating_points,
        froc=selected.froc,
        temperature=selected.temperature,
        depths={},  # those of the cards are of one fold each
        validation=validation_of(selected),
        trained_on=tuple(sorted({content for card in cards for content in card.trained_on})),
        patients=tuple(sorted({patient for card in cards for patient in card.patients})),
        validated_on=cards[0].validated_on if len(cards) == 1 else (),
    )


def _out_of_fold(folder: Path, prepared: Prepared) -> Iterator[CaseDetections]:
    """Yield what the fold's model detected in its validation cases, or in the slices of them that it predicted."""
    records = {record.case: record for record in prepared.cases}
    path = folder / OUT_OF_FOLD_FILE
    remedy = f"remove {folder / RESULT_FILE}, and run the same command again"
    with decoding(path, remedy=remedy), h5py.File(path, "r") as file:
        for case in file:
            record, probabilities = records[case], file[case][:]
            first = int(file[case].attrs.get("first_slice", 0))
            part = CasePart(record, first, first + probabilities.shape[1])
            truth = region_masks(prepared.label(record, part.box), prepared.regions)
            yield detect(case, record.patient, record.spacing_mm, probabilities, truth, per_slice=prepared.per_slice)
