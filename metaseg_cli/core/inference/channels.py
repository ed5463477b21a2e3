"""Map what the user has to the channels that a model needs: by names, never by position alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.datasets import KNOWN
from metaseg_cli.core.images import Volume, as_grey, channels_are_equal, is_constant, read_scan, resample_to
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.errors import ConfigError, InputError

# One file or folder, the files of a DICOM series, or what was read of them already.
Files = Path | str | Sequence[Path] | Volume
Scan = Path | str | NDArray[np.generic] | Mapping[str, Files] | Volume


def as_channels(card: ModelCard, scan: Scan) -> tuple[Volume, NDArray[np.bool_]]:
    """Return the available sequences as channels of one volume, and their modality availability ``(C,)``.

    A constant sequence, one number everywhere, is not available. Raises InputError.
    """
    return _without_constant(card, *_channels(card, scan))


def _channels(card: ModelCard, scan: Scan) -> tuple[Volume, NDArray[np.bool_]]:
    every = np.ones(len(card.sequences), dtype=bool)
    if isinstance(scan, Mapping):
        return _from_sequences(card, scan)
    if isinstance(scan, Volume):
        return _fitted(card, scan), every
    if isinstance(scan, (str, Path)):
        return _fitted(card, _in_order(card, read_scan([Path(scan)]))), every
    array = np.asarray(scan)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4:
        raise InputError(f"an array of shape {array.shape} is not an image", remedy="pass (C, Z, Y, X) or (C, Y, X)")
    if not np.isfinite(array).all():
        raise InputError("the array holds values that are not finite", remedy="replace NaN and Inf first")
    return _fitted(card, Volume(array=array, spacing_mm=None, source=Path("array"))), every


def _without_constant(
    card: ModelCard, volume: Volume, available: NDArray[np.bool_]
) -> tuple[Volume, NDArray[np.bool_]]:
    array = volume.array
    empty = np.array([is_constant(channel) for channel in array])
    if empty.all() or (empty.any() and _oriented(card) and not card.presence):
        raise InputError(
            f"constant: every voxel is {array[empty][0].flat[0]:g}", where=volume.source, remedy="replace or remove it"
        )
    if not empty.any() or not _oriented(card):
        return volume, available
    there = np.flatnonzero(available)
    names = [card.sequences[i] for i in there[empty]]
    kept = available.copy()
    kept[there[empty]] = False
    note = f"{', '.join(names)}: constant, the same number in every voxel; taken as missing"
    sequences = tuple(card.sequences[i] for i in there[~empty])
    return replace(volume, array=array[~empty], notes=(*volume.notes, note), sequences=sequences), kept


def _from_sequences(card: ModelCard, scans: Mapping[str, Files]) -> tuple[Volume, NDArray[np.bool_]]:
    wanted = card.sequences
    check_known(scans, wanted)
    unknown = [name for name in scans if name not in wanted]
    missing = [name for name in wanted if name not in scans]
    if unknown or len(missing) == len(wanted) or (missing and not card.presence):
        raise InputError(
            f"the model needs the sequences {', '.join(wanted)}, got {', '.join(scans)}",
            remedy="name one file per sequence, as in t1c=a.nii.gz",
        )
    volumes = {name: _read(scans[name]) for name in wanted if name in scans}
    first = next(iter(volumes.values()))
    for volume in volumes.values():
        if volume.array.shape[0] != 1:
            raise InputError(
                "; ".join((f"it has {volume.array.shape[0]} channels", *volume.notes)),
                where=volume.source,
                remedy="name a file, or a folder of the slices, of one",
            )
    placed = [resample_to(volume, first) for volume in volumes.values()]
    notes = tuple(dict.fromkeys(note for volume in placed for note in volume.notes))
    merged = replace(
        first, array=np.concatenate([volume.array for volume in placed]), notes=notes, sequences=tuple(volumes)
    )
    return merged, np.array([name in volumes for name in wanted])


def check_known(sequences: Iterable[str], takes: Sequence[str], typed: str = "") -> None:
    """Raise ConfigError for a name that is neither a sequence of the model, which *takes* some, nor another known one.

    *typed* is how the user spelled it.
    """
    for name in sequences:
        if takes and name not in takes and name not in KNOWN:
            raise ConfigError(f"unknown sequence {typed or name}", remedy=f"this model takes {', '.join(takes)}")


def _in_order(card: ModelCard, volume: Volume) -> Volume:
    """Reorder a file of several channels to the model's sequences, never by position alone."""
    channels, wanted = volume.array.shape[0], card.sequences
    if channels == 1 or len(wanted) == 1 or not _oriented(card):
        return volume
    if len(card.file_channels) != channels:
        raise InputError(
            f"a file of {channels} channels that does not say which sequences they are",
            where=volume.source,
            remedy=f"name a file for each sequence, as in {wanted[0]}=a.nii.gz",
        )
    return replace(volume, array=volume.array[[card.file_channels.index(name) for name in wanted]])


def _fitted(card: ModelCard, volume: Volume) -> Volume:
    """Give *volume* the model's channels; a grey picture saved in colour is taken as grey. Raises InputError."""
    wanted = len(card.sequences)
    if volume.array.shape[0] != wanted and wanted == 1 and channels_are_equal(volume):
        volume = as_grey(volume)
    has = volume.array.shape[0]
    if has != wanted:
        kinds = {1: "1 channel (grey)", 3: "3 channels (colour)"}
        remedy = "give it images of the kind it was trained on, or choose another model with --model"
        if wanted > 1 and _oriented(card):
            remedy = f"name the file of each sequence, as in {card.sequences[0]}=a.nii.gz"
        raise InputError(
            f"the image has {kinds.get(has, f'{has} channels')}, the model needs "
            f"{kinds.get(wanted, f'{wanted} channels')}: {', '.join(card.sequences)}",
            where=volume.source,
            remedy=remedy,
        )
    return replace(volume, sequences=card.sequences if _oriented(card) else ())


def _oriented(card: ModelCard) -> bool:
    return Preprocessing.from_record(card.preprocessing).oriented


def _read(scan: Files) -> Volume:
    if isinstance(scan, Volume):
        return scan
    return read_scan([Path(scan)] if isinstance(scan, (str, Path)) else list(scan))
