"""In what a scan differs from the training data of a model, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.descriptors import describe
from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.images import Volume
from metaseg_cli.core.input_statistics import VERSION, InputStatistics, length_text
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.preprocessing import GridMapping
from metaseg_cli.core.results import UNLIKE_TRAINING
from metaseg_cli.errors import InputError

_AXES = ("high", "long", "wide")  # of a head, z y x


def described(
    card: ModelCard, image: NDArray[np.float32], available: NDArray[np.bool_], mapping: GridMapping
) -> NDArray[np.float64]:
    """Return descriptors of a preprocessed *image* ``(C, Z, Y, X)`` of the *available* ``(C,)`` sequences."""
    present = [name for name, there in zip(card.sequences, available, strict=True) if there]
    return describe(image, present, card.sequences, each_slice=mapping.reorientation is None).astype(float)


def differences(card: ModelCard, volume: Volume, mapping: GridMapping, rows: NDArray[np.float64]) -> tuple[str, ...]:
    """Return notes on how *volume*, with descriptors *rows*, differs from what the model was trained on.

    Model files of older versions know their training data less well, and say less.
    """
    return tuple(f"{UNLIKE_TRAINING}{reason}" for reason in _reasons(card, volume, mapping, rows))


def refuse_unlike(notes: Iterable[str], source: Path) -> None:
    """Raise InputError where *notes* say that a scan is unlike the training data."""
    reasons = reasons_in(notes)
    if reasons:
        raise InputError(
            f"{UNLIKE_TRAINING}{'; '.join(reasons)}",
            where=source,
            remedy="give it a scan of the kind the model was trained on, or leave out --strict and check the mask",
        )


def reasons_in(notes: Iterable[str]) -> list[str]:
    """Return the differences that *notes* hold."""
    return [note.removeprefix(UNLIKE_TRAINING) for note in notes if note.startswith(UNLIKE_TRAINING)]


def _reasons(card: ModelCard, volume: Volume, mapping: GridMapping, rows: NDArray[np.float64]) -> Iterator[str]:
    oriented = mapping.reorientation is not None
    if oriented and is_picture(volume.source):
        yield "it is a picture; the model was trained on volumes"
    if not oriented and volume.spacing_mm is not None and not is_picture(volume.source):
        yield "it is a volume; the model was trained on pictures, and sees its slices as they are stored"
    seen = card.inputs
    if seen is None or seen.version != VERSION:
        return
    if oriented:
        yield from _odd_voxels(seen, mapping)
        yield from _odd_head(seen, mapping)
    else:
        yield from _odd_size(seen, volume)
    yield from _odd_intensities(card, seen, rows)


def _odd_voxels(seen: InputStatistics, mapping: GridMapping) -> Iterator[str]:
    voxel, known = mapping.cropped_spacing_mm, seen.voxel_mm
    odd = known.odd(voxel) if voxel is not None and known is not None else []
    if voxel is None or known is None or not odd:
        return
    if 0 in odd:
        yield (f"its voxels are {length_text(voxel[0])} mm thick; the model was trained on {known.text(0)} mm")
    if 1 in odd or 2 in odd:
        axis = 2 if 2 in odd else 1
        yield (f"its voxels are {length_text(voxel[axis])} mm wide; the model was trained on {known.text(axis)} mm")


def _odd_head(seen: InputStatistics, mapping: GridMapping) -> Iterator[str]:
    extent, known = mapping.extent_mm, seen.head_mm
    odd = known.odd(extent) if extent is not None and known is not None else []
    if extent is None or known is None or not odd:
        return
    shown = " and ".join(f"{length_text(extent[axis])} mm {_AXES[axis]}" for axis in odd)
    usual = " and ".join(f"{known.text(axis)} mm" for axis in odd)
    yield f"what it shows is {shown}, in the training data {usual} (is it a whole head?)"


def _odd_size(seen: InputStatistics, volume: Volume) -> Iterator[str]:
    _, y, x = volume.shape
    known = seen.picture_px
    if known is not None and known.odd((1.0, float(y), float(x))):
        yield f"it has {x} × {y} pixels; the model was trained on {known.text(2)} × {known.text(1)}"


def _odd_intensities(card: ModelCard, seen: InputStatistics, rows: NDArray[np.float64]) -> Iterator[str]:
    mistaken = seen.mistaken(rows, card.sequences)
    for name, other in mistaken.items():
        yield f"what was given as {name} looks like the {other} of the training data"
    odd = seen.odd_intensities(rows, card.sequences)
    alone = [name for name in odd if name in card.sequences and name not in mistaken]
    if alone:
        yield (
            f"its intensities are unlike the {', '.join(alone)} of the training data "
            "(is it another sequence, without contrast agent, or another part of the body?)"
        )
    elif odd and not mistaken:
        yield f"{odd[0]} differ from one another in another way than in the training data (is one another sequence?)"
