"""A model for each fold, then their ensemble, tuned on predictions that each made of cases it had not seen."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  makes LZ4 known to h5py

from metaseg_cli.commands.run_folder import CONFIG_FILE, OUT_OF_FOLD, new_run
from metaseg_cli.commands.runs import MODEL_FILE, RESULT_FILE
from metaseg_cli.commands.train import TrainResult, resumed, train_fold
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import dump_yaml
from metaseg_cli.core.atomic import atomic_write_text, exclusive_writer
from metaseg_cli.core.cache import Prepared, open_prepared, region_masks
from metaseg_cli.core.model_file import Ensemble, ModelCard, load_model_file, save_model
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.training.distributed import Group
from metaseg_cli.core.training.tuning import lesion_sizes, tune
from metaseg_cli.core.training.validation import CaseFindings, findings
from metaseg_cli.core.typed_json import read_json
from metaseg_cli.errors import InputError, decoding


def cross_validate(
    config: TrainConfig, progress: Progress, group: Group, clock: Callable[[], float] = time.monotonic
) -> TrainResult:
    """Train every fold that is not finished, in ``fold0``, ``fold1``, … of one run, and join them.

    The same call again goes on with the newest run of the same settings on the same data; finished folds stay.
    Raises InputError when the cases changed in between.
    """
    if config.resume is not None:
        config = resumed(config)
    prepared = open_prepared(config.data)
    run = group.led(
        (config.resume or _unfinished(config, prepared) or _begun(config, prepared)) if group.leads else None
    )
    assert run is not None
    config = dataclasses.replace(config, resume=None)
    with exclusive_writer(run, "metaseg train") if group.leads else nullcontext():
        return _train_folds(run, config, prepared, progress, group, clock)


def _train_folds(
    run: Path,
    config: TrainConfig,
    prepared: Prepared,
    progress: Progress,
    group: Group,
    clock: Callable[[], float],
) -> TrainResult:
    """Train what is not finished in *run*, then join."""
    _check_data(run, prepared)
    began = clock()
    results = []
    for fold in range(prepared.folds):
        folder = run / f"fold{fold}"
        if (folder / RESULT_FILE).exists():
            progress.say(f"fold {fold} is finished: {folder}")
        else:
            progress.say(f"fold {fold} of {prepared.folds}")
            # A fold that was begun has a checkpoint from its first step on.
            begun = (folder / CONFIG_FILE).exists() and any(folder.glob("checkpoint*.pt"))
            settings = dataclasses.replace(config, fold=str(fold), resume=folder if begun else None)
            if group.leads:
                folder.mkdir(exist_ok=True)
            train_fold(settings, progress, group, clock, run=folder)
        results.append(read_json(folder / RESULT_FILE, remedy="remove it, and run the same command again"))
    result = _joined(run, prepared, results, (clock() - began) / 60)
    if group.leads:
        atomic_write_text(run / RESULT_FILE, json.dumps(dataclasses.asdict(result), indent=1, default=str))
    return result


def _begun(config: TrainConfig, prepared: Prepared) -> Path:
    run = new_run(config)
    atomic_write_text(run / CONFIG_FILE, _as_written(config))
    atomic_write_text(run / "data.json", json.dumps({"id": prepared.dataset_id, "cases": _contents(prepared)}))
    return run


def _unfinished(config: TrainConfig, prepared: Prepared) -> Path | None:
    """The newest run that these very settings began on this very data."""
    candidates = sorted(config.out.glob("*/data.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in candidates:
        settings = path.parent / CONFIG_FILE
        same = settings.exists() and settings.read_text(encoding="utf-8") == _as_written(config)
        if same and _cases_of(path) == _contents(prepared):
            return path.parent
    return None


def _as_written(config: TrainConfig) -> str:
    return dump_yaml(dataclasses.replace(config, resume=None))


def _contents(prepared: Prepared) -> list[list[object]]:
    return [[case.case, case.fold, case.content] for case in prepared.cases]


def _cases_of(path: Path) -> object:
    return read_json(path, remedy="start a new run without --resume").get("cases")


def _check_data(run: Path, prepared: Prepared) -> None:
    if _cases_of(run / "data.json") != _contents(prepared):
        raise InputError(
            "the prepared folder is not the one this run began with",
            where=prepared.folder,
            remedy="begin anew, without --resume",
        )


def _joined(run: Path, prepared: Prepared, results: list[dict[str, object]], minutes: float) -> TrainResult:
    """Write the ensemble file, its threshold, smallest lesion and temperature tuned out of fold."""
    folds = [run / f"fold{fold}" for fold in range(prepared.folds)]
    members = [load_model_file(fold / MODEL_FILE) for fold in folds]
    cards = [card for _, card in members]
    found = [each for fold in folds for each in _out_of_fold(fold / OUT_OF_FOLD, prepared)]
    tuned = tune(found, lesion_sizes(prepared.cases), prepared.regions)
    assert tuned.score is not None

    def of_all(name: str) -> tuple[str, ...]:
        return tuple(sorted({value for card in cards for value in getattr(card, name)}))

    values = {
        "members": len(members),
        "postprocessing": tuned.postprocessing,
        "temperature": tuned.temperature,
        "depths": {},  # of one fold each
        "validation": {"dice": tuned.score.dice, "lesion_f1": tuned.score.lesion_f1},
        "trained_on": of_all("trained_on"),
        "patients": of_all("patients"),
        "validated_on": (),
    }
    card = ModelCard(**{**vars(cards[0]), **values})
    save_model(run / MODEL_FILE, Ensemble([network for network, _ in members]), card)
    return TrainResult(
        run=run,
        model=run / MODEL_FILE,
        epochs=_total(results, "epochs"),
        best_epoch=0,
        steps=_total(results, "steps"),
        stopped=f"{len(members)} folds",
        scores=dataclasses.asdict(tuned.score),
        by_size=tuned.by_size,
        unit=str(results[0]["unit"]),
        postprocessing=tuned.postprocessing,
        temperature=tuned.temperature,
        minutes=minutes,
        images_per_second=sum(_number(r["images_per_second"]) for r in results) / len(results),
        milliseconds_per_step={},
        precision=str(results[0]["precision"]),
        validation_cases=len(found),
        folds=tuple(folds),
    )


def _out_of_fold(path: Path, prepared: Prepared) -> list[CaseFindings]:
    records = {record.case: record for record in prepared.cases}
    remedy = f"remove {path.parent / RESULT_FILE}, and run the same command again"
    with decoding(path, remedy=remedy), h5py.File(path, "r") as file:
        return [
            findings(
                case,
                records[case].patient,
                records[case].spacing_mm,
                file[case][:],
                region_masks(prepared.label(records[case]), prepared.regions),
            )
            for case in file
        ]


def _total(results: list[dict[str, object]], name: str) -> int:
    return int(sum(_number(result[name]) for result in results))


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)
