"""A model for each fold, then their ensemble, whose post-processing is selected on out-of-fold predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
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
from metaseg_cli.core.training.detections import CaseDetections, detect
from metaseg_cli.core.training.fold import Caller, resumed_config, train_fold
from metaseg_cli.core.training.result import TrainResult, write_result
from metaseg_cli.core.training.seen_inputs import seen_inputs
from metaseg_cli.core.training.select_postprocessing import (
    SelectedPostprocessing,
    select_postprocessing,
    validation_of,
)
from metaseg_cli.core.typed_json import build, read_json
from metaseg_cli.errors import ConfigError, InputError, Interrupted, decoding


@dataclass(frozen=True, kw_only=True)
class _FoldResult:
    """What the ensemble's result needs of each fold's ``result.json``."""

    epochs: int
    steps: int
    unit: str
    images_per_second: float
    precision: str


def cross_validate(config: TrainConfig, caller: Caller) -> TrainResult:
    """Train every fold that is not finished, in ``fold0``, ``fold1``, … of one run, and make their ensemble.

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
        began = caller.clock()
        results = [_train_or_skip(run, fold, config, prepared, caller) for fold in range(prepared.folds)]
        result = _combine(run, prepared, results, (caller.clock() - began) / 60)
        if group.is_main:
            write_result(result)
        return result


def _train_or_skip(run: Path, fold: int, config: TrainConfig, prepared: Prepared, caller: Caller) -> _FoldResult:
    """Train *fold* unless it is finished."""
    folder = fold_folder(run, fold)
    if (folder / RESULT_FILE).exists():
        caller.progress.say(f"fold {fold} is finished: {folder}")
    else:
        caller.progress.say(f"fold {fold} of {prepared.folds}")
        # A fold that was begun has a checkpoint from its first step on.
        resume = folder if has_checkpoint(folder) else None
        if caller.group.is_main:
            folder.mkdir(exist_ok=True)
        try:
            train_fold(dataclasses.replace(config, fold=str(fold), resume=resume), caller, run=folder)
        except Interrupted as stop:
            raise Interrupted(
                f"fold {fold} of {prepared.folds}: {stop.what}",
                where=run,
                remedy=f"resume all folds with: metaseg train --resume {run}",
            ) from stop
    result, remedy = folder / RESULT_FILE, "remove it, and run the same command again"
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


def _combine(run: Path, prepared: Prepared, results: Sequence[_FoldResult], minutes: float) -> TrainResult:
    """Write the ensemble file, its post-processing and temperature selected on out-of-fold predictions."""
    folds = tuple(fold_folder(run, fold) for fold in range(prepared.folds))
    cases = [each for fold in folds for each in _out_of_fold(fold, prepared)]
    smallest = prepared.smallest_lesions([case for case in prepared.cases if case.labelled and case.split != "test"])
    members = [load_model_file(fold / MODEL_FILE) for fold in folds]
    default = members[0][1].operating_point
    selected = select_postprocessing(cases, smallest, tuple(prepared.regions), default)
    assert selected.score is not None
    trained = {content for _, card in members for content in card.trained_on}
    inputs = seen_inputs(prepared, [case for case in prepared.cases if case.content in trained])
    card = dataclasses.replace(_ensemble_card([card for _, card in members], selected), inputs=inputs)
    save_model(run / MODEL_FILE, Ensemble([network for network, _ in members]), card)
    return TrainResult(
        run=run,
        model=run / MODEL_FILE,
        epochs=sum(each.epochs for each in results),
        best_epoch=0,
        steps=sum(each.steps for each in results),
        stopped=f"{len(members)} folds",
        scores=dataclasses.asdict(selected.score),
        by_size=selected.by_size,
        unit=results[0].unit,
        postprocessing=selected.postprocessing,
        operating_point=selected.default,
        operating_points=selected.operating_points,
        froc=selected.froc,
        temperature=selected.temperature,
        minutes=minutes,
        images_per_second=sum(each.images_per_second for each in results) / len(results),
        milliseconds_per_step={},
        precision=results[0].precision,
        validation_cases=len(cases),
        folds=folds,
    )


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
        validated_on=(),
    )


def _out_of_fold(folder: Path, prepared: Prepared) -> list[CaseDetections]:
    """Return what the fold's model detected in its validation cases."""
    records = {record.case: record for record in prepared.cases}
    path = folder / OUT_OF_FOLD_FILE
    remedy = f"remove {folder / RESULT_FILE}, and run the same command again"
    with decoding(path, remedy=remedy), h5py.File(path, "r") as file:
        return [
            detect(
                case,
                records[case].patient,
                records[case].spacing_mm,
                file[case][:],
                region_masks(prepared.label(records[case]), prepared.regions),
                per_slice=prepared.per_slice,
            )
            for case in file
        ]
