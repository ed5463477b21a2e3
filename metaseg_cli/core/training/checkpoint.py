"""The state of a run, written atomically in two generations and read without running code."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.errors import InputError, decoding, printable

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
        atomic_write(path, write)
    except InputError as error:
        raise InputError(
            f"the checkpoint cannot be written ({error.what}); the one before it is kept",
            where=path,
            remedy=f"make room on the disk, then: metaseg train --resume {run}",
        ) from error


def load_checkpoint(run: Path, restore: Callable[[dict[str, Any]], None]) -> str:
    """Give the newest whole state to *restore*; returns what has to be said about it. Raises InputError without one.

    Where the newest is damaged, in a way that *restore* notices at the latest, the one before it is taken.
    """
    reasons = []
    for name in (CHECKPOINT, _BEFORE):
        if not (run / name).is_file():
            continue
        try:
            with decoding(run / name):
                _check_sums(run / name)
                restore(torch.load(run / name, map_location="cpu", weights_only=True))
        except InputError as error:
            reasons.append(f"{name} {error.what}")
        else:
            return f"{reasons[0]}; resuming from the one before it" if reasons else ""
    raise InputError(
        "; ".join(reasons) if reasons else "this run has no checkpoint",
        where=run,
        remedy="start a new run without --resume",
    )


def _check_sums(path: Path) -> None:
    """Raise ValueError for a flipped bit, which torch does not look for: its file is a ZIP with a checksum each."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {printable(damaged)[:60]}")
