"""Score models on prepared cases that they have not seen, or folders of masks against another; compare several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.metrics import Protocol, find_protocol
from metaseg_cli.core.metrics.cases import CaseScore, ScoredCase
from metaseg_cli.core.metrics.evaluation import Evaluation, summarise
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.typed_json import as_json
from metaseg_cli.errors import InputError, Problem
from metaseg_cli.reports import evaluation_files

_WORST = 6


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What was scored (*what*), the scores, and where they lie."""

    out: Path
    name: str
    what: str
    evaluation: Evaluation
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class _System:
    """A model, or a folder of predictions, while it is being scored."""

    name: str
    what: str
    out: Path
    scored: Iterator[ScoredCase]
    settings: dict[str, Any]
    notes: Sequence[str] = ()  # complete when all is scored
    problems: list[Problem] = field(default_factory=list)


def evaluate(config: EvaluateConfig, progress: Progress, only: frozenset[str] | None = None) -> EvaluateResult:
    """Score one model or folder; *only* these prepared cases, when named. Raises InputError when there is none."""
    protocol = protocol_of(config)
    if config.references is not None:
        folder = config.predictions or Path(config.models[0])
        return _scored(_of_folder(folder, config, protocol, config.out or Path("evaluation"), progress), protocol)
    return _scored(_of_model(config.models[0] if config.models else None, config, protocol, progress, only), protocol)


def protocol_of(config: EvaluateConfig) -> Protocol:
    """The rules that *config* names, and whatever it sets otherwise."""
    return find_protocol(
        config.protocol,
        connectivity=config.connectivity,
        dilation=config.dilation,
        smallest_lesion_mm3=config.smallest_lesion,
        matching=config.matching,
        penalty_mm=config.penalty,
    )


def _of_folder(predictions: Path, config: EvaluateConfig, protocol: Protocol, out: Path, progress: Progress) -> _System:
    from metaseg_cli.commands.evaluate_folders import score_folder

    assert config.references is not None
    problems: list[Problem] = []
    notes: list[str] = []
    return _System(
        name=predictions.name,
        what=f"{predictions} against {config.references}",
        out=out,
        scored=score_folder(predictions, config.references, config, protocol, problems, progress, notes, out),
        settings={"predictions": predictions, "references": config.references, "grid": "of each reference"},
        problems=problems,
        notes=notes,
    )


def unseen_by(named: str, config: EvaluateConfig) -> frozenset[str]:
    """The prepared cases that this model may be scored on."""
    from metaseg_cli.commands.evaluate_model import unseen_cases
    from metaseg_cli.core.cache import open_prepared
    from metaseg_cli.core.model_file import read_card
    from metaseg_cli.core.run_folder import find_model

    path = find_model(named)
    return frozenset(
        record.case for record in unseen_cases(open_prepared(config.data), read_card(path), path, config)[0]
    )


def _of_model(
    named: str | None, config: EvaluateConfig, protocol: Protocol, progress: Progress, only: frozenset[str] | None
) -> _System:
    from metaseg_cli.commands.evaluate_model import score_with_model, unseen_cases
    from metaseg_cli.core.cache import open_prepared
    from metaseg_cli.core.model_file import read_card
    from metaseg_cli.core.run_folder import find_model

    path = find_model(named)
    card = read_card(path)
    prepared = open_prepared(config.data)
    records, notes = unseen_cases(prepared, card, path, config)
    records = [record for record in records if only is None or record.case in only]
    postprocessing = card.of_regions()
    if config.threshold is not None:
        postprocessing = tuple(each.with_threshold(config.threshold) for each in postprocessing)
    problems: list[Problem] = []
    out = config.out or path.parent / "evaluation"
    return _System(
        name=path.parent.name,
        what=f"{len(records)} cases, {config.split}, {path}",
        out=out,
        scored=score_with_model(path, prepared, records, postprocessing, config, protocol, problems, progress, out),
        settings={
            "model": path,
            "data": config.data,
            "split": config.split,
            "postprocessing": {name: as_json(each) for name, each in zip(card.regions, postprocessing, strict=True)},
            "grid": "of the prepared cases",
        },
        notes=notes,
        problems=problems,
    )


def _scored(system: _System, protocol: Protocol) -> EvaluateResult:
    """Collect the cases, keeping only the worst ones' pictures, and write everything."""
    cases: list[CaseScore] = []
    worst: list[tuple[float, ScoredCase]] = []
    for each in system.scored:
        cases.append(each.score)
        dice = float(np.mean([s["dice"] for s in each.score.regions.values()]))
        worst = sorted([*worst, (dice, each)], key=lambda pair: pair[0])[:_WORST]
    if not cases:
        first = system.problems[0] if system.problems else None
        raise InputError(
            f"not one pair could be scored{f': {first.file}: {first.reason}' if first else ''}",
            remedy="check the folders",
        )
    evaluation = summarise(cases, protocol)
    evaluation_files.write(
        system.out,
        evaluation,
        title=system.what,
        settings=system.settings,
        worst=[(f"{e.score.case} · Dice {dice:.2f}", e.picture) for dice, e in worst],
        problems=system.problems,
        notes=system.notes,
    )
    return EvaluateResult(
        out=system.out,
        name=system.name,
        what=system.what,
        evaluation=evaluation,
        notes=tuple(system.notes),
        problems=tuple(system.problems),
    )
