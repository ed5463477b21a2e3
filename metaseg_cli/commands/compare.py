"""Several models, or folders of masks, on the same cases: how certain it is that one is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.evaluation.comparison import compare_systems
from metaseg_cli.core.evaluation.folder_pairs import evaluate_folder
from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import COMPARISON_FILE, METRICS_FILE, SystemComparison
from metaseg_cli.core.results.scores import PairedDifference
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import InputError, Problem
from metaseg_cli.outputs.documents import document_last, write_table
from metaseg_cli.outputs.evaluation import metrics_document, write_score_tables
from metaseg_cli.reports.comparison_page import write_comparison_page
from metaseg_cli.reports.evaluation_page import write_evaluation_page


@dataclass(frozen=True, kw_only=True)
class CompareResult:
    """The scores of each system, and the ``document`` that compares them."""

    out: Path
    systems: tuple[EvaluatedSystem, ...]
    document: SystemComparison

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of all systems, each once."""
        return tuple(dict.fromkeys(problem for system in self.systems for problem in system.problems))


def compare(config: EvaluateConfig, progress: Progress) -> CompareResult:
    """Score the systems that ``config.models`` names, on the cases that none of them has seen, and compare them.

    Raises InputError when there is no such case.
    """
    out = config.out or Path("comparison")
    only, notes = _common_cases(config)
    systems = []
    for model, name in zip(config.models, _names(config.models), strict=True):
        progress.say(f"{name}: {model}")
        system = _score(model, dataclasses.replace(config, models=(model,), out=out / name), only, progress)
        with document_last(system.out / METRICS_FILE, metrics_document(system)):
            write_score_tables(system.out, system.evaluation.cases)
            write_evaluation_page(system)
        systems.append(dataclasses.replace(system, name=name))
    document = compare_systems(systems, notes)
    with document_last(out / COMPARISON_FILE, document):
        write_table(out / "comparison.csv", PairedDifference, document.differences)
        write_comparison_page(out / "comparison.html", document)
    return CompareResult(out=out, systems=tuple(systems), document=document)


def _common_cases(config: EvaluateConfig) -> tuple[frozenset[str] | None, tuple[str, ...]]:
    """Return the prepared cases that no model has seen (None for folders of masks), and a note on those skipped."""
    if config.references is not None:
        return None, ()
    from metaseg_cli.core.evaluation.model_cases import unseen_by

    unseen = [unseen_by(find_model(model), config) for model in config.models]
    common = frozenset.intersection(*unseen)
    if not common:
        raise InputError(
            "there is no case that none of these models has seen",
            where=config.data,
            remedy="compare models of the same fold, or on --split test",
        )
    skipped = len(frozenset.union(*unseen)) - len(common)
    notes = (f"{skipped} cases that not all of the models may be scored on were left out",) if skipped else ()
    return common, notes


def _score(model: str, config: EvaluateConfig, only: frozenset[str] | None, progress: Progress) -> EvaluatedSystem:
    assert config.out is not None
    if config.references is not None:
        return evaluate_folder(Path(model), config.out, config, progress)
    from metaseg_cli.core.evaluation.model_cases import evaluate_model

    return evaluate_model(find_model(model), config, progress, only)


def _names(models: Sequence[str]) -> list[str]:
    """Return a short name for each system, no two alike."""
    short = [Path(m).parent.name if Path(m).is_file() else Path(m).name or str(m) for m in models]
    if len(set(short)) == len(short):
        return short
    return [f"{number}-{name}" for number, name in enumerate(short, start=1)]
