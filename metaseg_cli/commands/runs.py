"""Which model a command means: a file, a run, an architecture, or simply the newest."""

from __future__ import annotations

import os
from pathlib import Path

from metaseg_cli.core.choices import is_network_name, network_name
from metaseg_cli.core.paths import is_there
from metaseg_cli.errors import InputError

MODEL_FILE = "model.safetensors"
RESULT_FILE = "result.json"  # its presence marks a run as finished


def finished_runs(runs: Path) -> list[Path]:
    """Finished runs under *runs*, newest first."""
    found = [file.parent for file in runs.glob(f"*/{RESULT_FILE}") if (file.parent / MODEL_FILE).exists()]
    return sorted(found, key=lambda run: (run / RESULT_FILE).stat().st_mtime, reverse=True)


def find_model(named: str | Path | None, runs: Path = Path("runs")) -> Path:
    """The model file that *named* means: a file, a run folder, an architecture's newest run, or (None) the newest run.

    Raises InputError with the way to a model when there is none.
    """
    if named is None or (not is_there(named) and is_network_name(str(named))):
        wanted = network_name(str(named)) if named is not None else ""
        for run in finished_runs(runs):
            if run.name.startswith(wanted):
                return run / MODEL_FILE
        kind = f"finished {wanted} run" if wanted else "finished run"
        raise InputError(
            f"no {kind} found",
            where=runs,
            remedy="train one with metaseg train, try metaseg demo, or name a model file with --model",
        )
    path = Path(named)
    if os.path.isdir(path):
        if not (path / MODEL_FILE).exists():
            raise InputError("this folder holds no model.safetensors", where=path, remedy="name a run's folder")
        return path / MODEL_FILE
    if not is_there(path):
        raise InputError("no such model", where=path, remedy="name a model file, a run folder, or an architecture")
    return path
