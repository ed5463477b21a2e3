"""Score a model on prepared cases that it has not seen, or a folder of masks against references."""

from __future__ import annotations

from pathlib import Path

from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.evaluation.folder_pairs import evaluate_folder
from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import METRICS_FILE
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.outputs.documents import document_last
from metaseg_cli.outputs.evaluation import metrics_document, write_score_tables
from metaseg_cli.reports.evaluation_page import write_evaluation_page


def evaluate(config: EvaluateConfig, progress: Progress) -> EvaluatedSystem:
    """Run ``metaseg evaluate`` for one system. Raises InputError when there is nothing to score."""
    if config.references is not None:
        folder = config.predictions or Path(config.models[0])
        system = evaluate_folder(folder, config.out or Path("evaluation"), config, progress)
    else:
        from metaseg_cli.core.evaluation.model_cases import evaluate_model  # torch loads here

        system = evaluate_model(find_model(config.models[0] if config.models else None), config, progress)
    with document_last(system.out / METRICS_FILE, metrics_document(system)):
        write_score_tables(system.out, system.evaluation.cases)
        write_evaluation_page(system)
    return system
