"""The state of a run, written atomically in two generations and read without running code."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.run_folder import CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE
from metaseg_cli.errors import InputError, decoding, printable

Restored = TypeVar("Restored")


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write *state*, keeping the checkpoint before it. Raises InputError when the disk does not take it.

    A full disk or a kill leaves a whole checkpoint under one of the two names.
    """
    path = run / CHECKPOINT_FILE

    def write(to: Path) -> None:
        torch.save(state, to)
        if path.exists():
            path.replace(run / PREVIOUS_CHECKPOINT_FILE)

    try:
        atomic_write(path, write)
    except InputError as error:
        raise InputError(
            f"the checkpoint cannot be written ({error.what}); the one before it is kept",
            where=path,
            remedy=f"make room on the disk, then: metaseg train --resume {run}",
        ) from error


def load_checkpoint(run: Path, restore: Callable[[dict[str, Any]], Restored]) -> tuple[Restored, str]:
    """Return what *restore* makes of the newest whole state, and a note for the user where it is not the last one.

    Where the newest is damaged, in a way that *restore* notices at the latest, the one before it is taken. Raises
    InputError when there is none.
    """
    reasons = []
    for name in (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE):
        if not (run / name).is_file():
            continue
        try:
            with decoding(run / name):
                _check_sums(run / name)
                restored = restore(torch.load(run / name, map_location="cpu", weights_only=True))
        except InputError as error:
            reasons.append(f"{name} {error.what}")
        else:
            return restored, f"{reasons[0]}; resuming from the one before it" if reasons else ""
    raise InputError(
        "; ".join(reasons) if reasons else "this run has no checkpoint",
        where=run,
        remedy="start a new run without --resume",
    )


def _check_sums(path: Path) -> None:
    """Raise ValueError for a flipped bit, which torch does not check: the file is a ZIP with a checksum per member."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {printable(damaged)[:60]}")
