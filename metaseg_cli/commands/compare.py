"""Several models, or folders of masks, on the same cases: how sure it is that one is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metaseg_cli.commands.evaluate import EvaluateResult, evaluate, unseen_by
from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.metrics.cases import CaseScore
from metaseg_cli.core.metrics.differences import Difference, paired_differences, rank_shares
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, Problem
from metaseg_cli.reports import comparison_files

_COMPARED = ("dice", "lesion_f1", "lesion_recall", "lesion_precision", "lesion_wise_dice")
_LOWER_IS_BETTER = ("hd95", "lesion_wise_hd95")


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """One evaluation of each system, and by region: their paired differences over patients, and ranks.

    ``ranks``: region → metric → system → how often it takes rank 1, 2, … when patients are drawn anew.
    """

    out: Path
    systems: tuple[EvaluateResult, ...]
    patients: int
    differences: dict[str, tuple[Difference, ...]]
    ranks: dict[str, dict[str, dict[str, list[float]]]]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Those of all systems, each once."""
        return tuple(dict.fromkeys(problem for system in self.systems for problem in system.problems))


def compare(config: EvaluateConfig, progress: Progress) -> CompareResult:
    """Score the systems that ``config.models`` names, on the cases that none of them has seen, and compare them.

    Raises InputError when there is no such case.
    """
    out = config.out or Path("comparison")
    notes: list[str] = []
    only: frozenset[str] | None = None
    if config.references is None:
        unseen = [unseen_by(model, config) for model in config.models]
        only = frozenset.intersection(*unseen)
        if not only:
            raise InputError(
                "there is no case that none of these models has seen",
                where=config.data,
                remedy="compare models of the same fold, or on --split test",
            )
        left = len(frozenset.union(*unseen)) - len(only)
        if left:
            notes.append(f"{left} cases that not all of the models may be scored on were left out")
    systems = []
    for model, name in zip(config.models, _names(config.models), strict=True):
        progress.say(f"{name}: {model}")
        one = dataclasses.replace(config, models=(model,), out=out / name)
        systems.append(dataclasses.replace(evaluate(one, progress, only), name=name))
    patients = sorted(set.intersection(*({case.patient for case in s.evaluation.cases} for s in systems)))
    differences, ranks = {}, {}
    for region in systems[0].evaluation.summary:
        values = {
            system.name: {
                metric: [_of_patient(system.evaluation.cases, patient, region, metric) for patient in patients]
                for metric in _metrics(systems, region)
            }
            for system in systems
        }
        lower = [metric for metric in next(iter(values.values())) if metric.rpartition("_")[0] in _LOWER_IS_BETTER]
        differences[region] = tuple(paired_differences(values, lower))
        ranks[region] = {
            metric: rank_shares({name: row[metric] for name, row in values.items()}, lower_is_better=metric in lower)
            for metric in next(iter(values.values()))
        }
    result = CompareResult(
        out=out,
        systems=tuple(systems),
        patients=len(patients),
        differences=differences,
        ranks=ranks,
        notes=tuple(notes),
    )
    comparison_files.write(
        out,
        {system.name: system.evaluation for system in systems},
        differences,
        ranks,
        patients=len(patients),
        notes=notes,
        sources={system.name: system.what for system in systems},
    )
    return result


def _names(models: Sequence[str]) -> list[str]:
    """A short name for each, no two alike."""
    short = [Path(m).parent.name if Path(m).is_file() else Path(m).name or str(m) for m in models]
    if len(set(short)) == len(short):
        return short
    return [f"{number}-{name}" for number, name in enumerate(short, start=1)]


def _metrics(systems: Sequence[EvaluateResult], region: str) -> list[str]:
    """The metrics that every case of every system has as a number."""
    cases = [case for system in systems for case in system.evaluation.cases]
    first = cases[0].comparisons[region]
    named = [f"{m}{'' if m.startswith('nsd') else '_'}{first.unit}" for m in ("nsd_1", "hd95", "lesion_wise_hd95")]
    wanted = [m for m in _COMPARED if m in first.scores] + [m for m in named if m in first.scores]
    return [
        metric
        for metric in wanted
        if all(metric in c.regions[region] and not np.isnan(c.regions[region][metric]) for c in cases)
    ]


def _of_patient(cases: Sequence[CaseScore], patient: str, region: str, metric: str) -> float:
    return float(np.mean([case.for_mean(region, metric) for case in cases if case.patient == patient]))
