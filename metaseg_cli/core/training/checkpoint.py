"""The state of a run, written atomically and read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from metaseg_cli.core.whole_file import write_whole
from metaseg_cli.errors import InputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write *state*; a full disk or a kill leaves the checkpoint before it untouched."""
    write_whole(path, lambda to: torch.save(state, to))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state. Raises InputError when there is none or it is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            "this run has no checkpoint", where=path.parent, remedy="start it anew without --resume"
        ) from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint cannot be read ({str(error).splitlines()[0]})", where=path, remedy="start the run anew"
        ) from error
    return state
