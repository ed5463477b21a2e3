"""The state of a run, written atomically in two generations and read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from metaseg_cli.core.whole_file import write_whole
from metaseg_cli.errors import InputError, first_line

CHECKPOINT = "checkpoint.pt"
_BEFORE = "checkpoint.before.pt"


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write *state*, keeping the checkpoint before it. Raises InputError when the disk does not take it.

    A full disk or a kill leaves a whole checkpoint under one of the two names.
    """
    path = run / CHECKPOINT

    def write(to: Path) -> None:
        torch.save(state, to)
        if path.exists():
            path.replace(run / _BEFORE)

    try:
        write_whole(path, write)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the checkpoint cannot be written ({first_line(error)}); the one before it is kept",
            where=path,
            remedy=f"make room on the disk, then: metaseg train --resume {run}",
        ) from error


def load_checkpoint(run: Path) -> tuple[dict[str, Any], str]:
    """The newest whole state, and what has to be said about it. Raises InputError when there is none."""
    reasons = []
    for name in (CHECKPOINT, _BEFORE):
        try:
            state: dict[str, Any] = torch.load(run / name, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reasons.append(f"{name} cannot be read ({first_line(error)})")
        else:
            return state, f"{reasons[0]}; going on from the one before it" if reasons else ""
    raise InputError(
        "; ".join(reasons) if reasons else "this run has no checkpoint",
        where=run,
        remedy="start it anew without --resume",
    )
