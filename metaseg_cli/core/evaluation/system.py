"""One system with all its scores: a model, or a folder of masks from any tool."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.choices import Protocol, find_protocol
from metaseg_cli.core.metrics.cases import CaseScore, CaseSlice, ScoredCase, ScoringRules
from metaseg_cli.core.metrics.evaluation import Evaluation, summarise
from metaseg_cli.core.results import FolderSettings, ModelSettings
from metaseg_cli.core.results.scores import Summary
from metaseg_cli.errors import InputError, Problem

_WORST = 6  # cases whose pictures are kept


@dataclass
class EvaluationLog:
    """Problems and notes of the inputs, and the grid of a model's scores; complete once every case is scored."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    grid: str = "auto"


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """A case with a low Dice, and its picture."""

    case: str
    dice: float
    picture: CaseSlice


@dataclass(frozen=True, kw_only=True)
class EvaluatedSystem:
    """The scores of a system: ``name`` is short, ``what`` says what was scored, results go into the folder ``out``.

    ``index_region`` is the region that lesions are counted in elsewhere; pictures show it in the colour of lesions.
    """

    out: Path
    name: str
    what: str
    settings: ModelSettings | FolderSettings
    evaluation: Evaluation
    worst: tuple[WorstCase, ...]
    index_region: str
    folds: dict[str, Summary] = field(default_factory=dict)  # of a cross-validation, its folds apart
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


FOLD_METRICS = ("dice", "lesion_recall", "lesion_precision", "lesion_f1")  # that are shown of each fold


def fold_rows(system: EvaluatedSystem) -> Iterator[tuple[str, str, int, list[float]]]:
    """Yield fold, region, number of cases and the mean of each of ``FOLD_METRICS``; then the same of all folds."""
    for name, summary in (*system.folds.items(), ("all folds", system.evaluation.summary)):
        for region, metrics in summary.items():
            yield name, region, metrics["dice"].n, [metrics[metric].mean for metric in FOLD_METRICS]


def protocol_of(config: EvaluateConfig) -> Protocol:
    """Return the protocol that *config* names, with the rules that it changes."""
    return find_protocol(
        config.protocol,
        connectivity=config.connectivity,
        dilation=config.dilation,
        smallest_lesion_mm3=config.smallest_lesion,
        matching=config.matching,
        penalty_mm=config.penalty,
    )


def rules_of(config: EvaluateConfig) -> ScoringRules:
    """Return how *config* wants cases to be scored."""
    return ScoringRules(protocol=protocol_of(config), tolerances=config.tolerance)


def collect(
    scored: Iterable[ScoredCase], config: EvaluateConfig, log: EvaluationLog
) -> tuple[Evaluation, tuple[WorstCase, ...]]:
    """Collect all cases; only the worst ones' pictures are kept in memory. Raises InputError when there is no case."""
    cases: list[CaseScore] = []
    worst: list[WorstCase] = []
    for each in scored:
        cases.append(each.score)
        dice = float(np.mean([scores["dice"] for scores in each.score.regions.values()]))
        worst.append(WorstCase(case=each.score.case, dice=dice, picture=each.picture))
        worst = sorted(worst, key=lambda case: case.dice)[:_WORST]
    if not cases:
        first = log.problems[0] if log.problems else None
        raise InputError(
            f"no pair could be scored{f': {first.file}: {first.reason}' if first else ''}",
            remedy=first.remedy if first else "check the folders",
        )
    return summarise(cases, protocol_of(config)), tuple(worst)
