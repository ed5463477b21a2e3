"""Train a network on a prepared folder, or resume a run that was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.choices import network_name
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Progress, Silent
from metaseg_cli.core.training.cross_validation import cross_validate
from metaseg_cli.core.training.distributed import process_group
from metaseg_cli.core.training.fold import Caller, plan_fold, resumed_config, train_fold
from metaseg_cli.core.training.full_volume import PreviewSlice
from metaseg_cli.core.training.plan import Plan
from metaseg_cli.core.training.result import TrainResult
from metaseg_cli.reports import figures
from metaseg_cli.reports.region_colours import region_colours


def train(
    config: TrainConfig,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
    began: float | None = None,
) -> TrainResult:
    """Run ``metaseg train``; *clock* (seconds) is what ``--max-minutes`` goes by, from *began* or from now on.

    Under ``torchrun`` all processes train one model and the first one writes. Raises ConfigError and InputError for
    what cannot be trained, Interrupted after Ctrl-C or SIGTERM.
    """
    began = clock() if began is None else began
    network_name(config.model)  # a misspelt name is reported before anything is read
    with process_group(config.device) as group:
        listener = progress if group.is_main else Silent()
        caller = Caller(group=group, progress=listener, charts=_Charts(), clock=clock, began=began)
        # What a resumed run is, it says itself: nobody has to repeat --fold all.
        fold = config.fold if config.resume is None else resumed_config(config).fold
        return cross_validate(config, caller) if str(fold) == "all" else train_fold(config, caller)


def show_plan(config: TrainConfig) -> Plan:
    """Return what ``metaseg train --plan-only`` shows. Raises ConfigError and InputError as ``train`` does."""
    return plan_fold(config)


class _Charts:
    def curves(self, path: Path, history: dict[str, list[float]]) -> None:
        figures.save_curves(path, history)

    def previews(self, path: Path, slices: list[PreviewSlice], card: ModelCard) -> None:
        rows = [(each.case, each.image, each.reference, each.predicted) for each in slices]
        figures.save_worst_cases(path, rows, region_colours(list(card.regions), card.index_region))
