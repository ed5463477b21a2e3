"""Every setting of every command, written once: type, meaning, default, limits.

``options.py`` makes command-line options of them, ``config_file.py`` YAML keys, a run records them, and the
reference page lists them.
"""

from __future__ import annotations

from metaseg_cli.config.demo import DemoConfig
from metaseg_cli.config.evaluate import EvaluateConfig
from metaseg_cli.config.export import ExportConfig
from metaseg_cli.config.follow_up import FollowUpConfig
from metaseg_cli.config.predict import PredictConfig
from metaseg_cli.config.prepare import PrepareConfig
from metaseg_cli.config.serve_ui import ServeUiConfig
from metaseg_cli.config.setting import Setting, settings_of
from metaseg_cli.config.train import TrainConfig

COMMANDS: dict[str, type] = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "follow-up": FollowUpConfig,
    "export": ExportConfig,
    "serve-ui": ServeUiConfig,
    "demo": DemoConfig,
}

__all__ = [
    "COMMANDS",
    "DemoConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FollowUpConfig",
    "PredictConfig",
    "PrepareConfig",
    "ServeUiConfig",
    "Setting",
    "TrainConfig",
    "settings_of",
]
