"""A trained model as Python sees it: load once, predict scans or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaseg_cli.core.images import (
    Volume,
    as_grey,
    brought_onto,
    channels_are_equal,
    is_picture,
    read_scan,
    turn_to_canonical,
)
from metaseg_cli.core.inference.device import choose_device, choose_precision, lay_out
from metaseg_cli.core.inference.ensemble import Views
from metaseg_cli.core.inference.sliding_window import predict_probabilities
from metaseg_cli.core.inference.windows import largest_window
from metaseg_cli.core.measurements import Measurement, measure
from metaseg_cli.core.metrics import Lesion, find_lesions
from metaseg_cli.core.model_file import ModelCard, load_model_file
from metaseg_cli.core.models.blocks import fold_batch_norms
from metaseg_cli.core.postprocessing import Postprocessing, to_label_map, to_mask
from metaseg_cli.core.preprocessing import Placement, Preprocessing, preprocess
from metaseg_cli.errors import InputError

Files = Path | str | Sequence[Path]  # one file or folder, or the files of a DICOM series


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model found in one scan, on the scan's own grid.

    ``mask`` is ``(Z, Y, X)`` uint8 with the label values of the model's regions; ``masks`` and ``probabilities``
    ``(R, Z, Y, X)`` have a layer for each region, ``lesions`` its connected lesions, and ``measurements`` their
    lengths, in the same order. ``source`` is the scan (the first sequence, whose grid everything has), ``notes`` say
    what was missing or assumed.
    """

    mask: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    lesions: dict[str, list[Lesion]]
    measurements: dict[str, list[Measurement]]
    source: Volume
    notes: tuple[str, ...] = ()


class Model:
    """A network with its card, ready to predict. Made by ``load_model``."""

    def __init__(
        self, network: nn.Module, card: ModelCard, device: torch.device, path: Path, views: Views | None = None
    ) -> None:
        self.network, self.card, self.device, self.path = lay_out(network, card.dims, card.norm), card, device, path
        self.precision = choose_precision("auto", device)
        self.views = views or Views()
        self.preprocessing = Preprocessing.from_record(card.preprocessing)

    def predict(
        self, scan: Path | str | NDArray[np.generic] | Mapping[str, Files] | Volume, threshold: float | None = None
    ) -> Prediction:
        """Segment *scan*: a file, an array ``(C, Z, Y, X)`` or ``(C, Y, X)``, or a file per sequence name.

        An array's channels are the model's sequences in their order. *threshold* replaces the one in the model file.
        Raises InputError when the scan cannot be read or its channels are not those the model was trained on.
        """
        volume, present = self._volume(scan)
        image, placement = preprocess(volume, self.preprocessing)
        whole = np.zeros((len(self.card.sequences), *image.shape[1:]), np.float32)
        whole[present] = image
        probabilities = self.probabilities(torch.from_numpy(whole), torch.from_numpy(present))
        prediction = self.interpret(volume, self._in_place(probabilities, placement), threshold)
        missing = [s for s, there in zip(self.card.sequences, present, strict=True) if not there]
        if missing:
            prediction = replace(
                prediction, notes=(*prediction.notes, f"predicted without {', '.join(missing)}: expect less of it")
            )
        return prediction

    def _in_place(self, probabilities: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
        # Interpolation of values between 0 and 1 may leave the range by rounding.
        return np.clip(placement.undo(probabilities), 0.0, 1.0)

    def probabilities(self, image: Tensor, present: Tensor | None = None) -> NDArray[np.float32]:
        """*image* ``(C, Z, Y, X)``, preprocessed as in training → ``(R, Z, Y, X)`` on the same grid.

        *present* ``(C,)`` bool: which sequences are there; None: all.
        """
        if self.card.presence and present is None:
            present = torch.ones(len(self.card.sequences), dtype=torch.bool)
        values: NDArray[np.float32] = predict_probabilities(
            self.network,
            image.to(self.device),
            dims=self.card.dims,
            context=self.card.context,
            patch=self.card.patch[-self.card.dims :],
            largest=largest_window(self.card.norm),
            regions=self.card.out_channels,
            precision=self.precision,
            present=present if self.card.presence else None,
            views=replace(self.views, threshold=self.card.threshold),
        ).numpy()
        return values

    def interpret(
        self, volume: Volume, probabilities: NDArray[np.float32], threshold: float | None = None
    ) -> Prediction:
        """Masks and lesions that *probabilities* ``(R, Z, Y, X)`` of *volume* mean at *threshold*."""
        settings = Postprocessing(
            threshold=usual_threshold(self.card, self.views.fusion) if threshold is None else threshold,
            smallest_lesion_voxels=self.card.smallest_lesion_voxels,
        )
        masks = np.stack([to_mask(p, settings) for p in probabilities])
        lesions, measurements = {}, {}
        for region, mask, probability in zip(self.card.regions, masks, probabilities, strict=True):
            numbers, lesions[region] = find_lesions(mask, volume.spacing_mm, probability)
            measurements[region] = _measured(numbers, lesions[region], volume)
        return Prediction(
            mask=to_label_map(masks, self.card.regions),
            masks=masks,
            probabilities=probabilities,
            lesions=lesions,
            measurements=measurements,
            source=volume,
            notes=volume.notes,
        )

    # -- what the user has → the model's sequences --------------------------------------------------------------------

    def _volume(
        self, scan: Path | str | NDArray[np.generic] | Mapping[str, Files] | Volume
    ) -> tuple[Volume, NDArray[np.bool_]]:
        """The sequences that are there as channels of one volume, and which of the model's they are ``(C,)``."""
        every = np.ones(len(self.card.sequences), dtype=bool)
        if isinstance(scan, Mapping):
            return self._from_sequences(scan)
        if isinstance(scan, Volume):
            return self._fitted(scan), every
        if isinstance(scan, (str, Path)):
            return self._fitted(self._in_order(read_scan([Path(scan)]))), every
        array = np.asarray(scan)
        if array.ndim == 3:
            array = array[:, None]
        if array.ndim != 4:
            raise InputError(
                f"an array of shape {array.shape} is not an image", remedy="pass (C, Z, Y, X) or (C, Y, X)"
            )
        if not np.isfinite(array).all():
            raise InputError("the array holds values that are not finite", remedy="replace NaN and Inf first")
        return self._fitted(Volume(array=array, spacing_mm=None, source=Path("array"))), every

    def _from_sequences(self, scans: Mapping[str, Files]) -> tuple[Volume, NDArray[np.bool_]]:
        wanted = self.card.sequences
        unknown = [name for name in scans if name not in wanted]
        missing = [name for name in wanted if name not in scans]
        if unknown or len(missing) == len(wanted) or (missing and not self.card.presence):
            raise InputError(
                f"the model wants the sequences {', '.join(wanted)}, got {', '.join(scans)}",
                remedy="name one file per sequence, as in t1c=a.nii.gz",
            )
        volumes = {name: read_scan(_files(scans[name])) for name in wanted if name in scans}
        first = next(iter(volumes.values()))
        for volume in volumes.values():
            if volume.array.shape[0] != 1:
                raise InputError(
                    f"it has {volume.array.shape[0]} channels", where=volume.source, remedy="name a file of one"
                )
        placed = [brought_onto(volume, first) for volume in volumes.values()]
        notes = tuple(dict.fromkeys(note for volume in placed for note in volume.notes))
        merged = replace(first, array=np.concatenate([volume.array for volume in placed]), notes=notes)
        return merged, np.array([name in volumes for name in wanted])

    def _in_order(self, volume: Volume) -> Volume:
        """A file of several channels with the model's sequences in their order, never by position alone."""
        channels, wanted = volume.array.shape[0], self.card.sequences
        if channels == 1 or len(wanted) == 1 or not self.preprocessing.oriented:
            return volume
        if len(self.card.file_channels) != channels:
            raise InputError(
                f"a file of {channels} channels that does not say which sequences they are",
                where=volume.source,
                remedy=f"name a file for each sequence, as in {wanted[0]}=a.nii.gz",
            )
        return replace(volume, array=volume.array[[self.card.file_channels.index(name) for name in wanted]])

    def _fitted(self, volume: Volume) -> Volume:
        """*volume* with the model's channels; a grey picture saved in colour is taken as grey."""
        wanted = len(self.card.sequences)
        if volume.array.shape[0] != wanted and wanted == 1 and channels_are_equal(volume):
            volume = as_grey(volume)
        has = volume.array.shape[0]
        if has != wanted:
            kinds = {1: "1 channel (grey)", 3: "3 channels (colour)"}
            remedy = "give it images of the kind it was trained on, or choose another model with --model"
            if wanted > 1 and self.preprocessing.oriented:
                remedy = f"name the file of each sequence, as in {self.card.sequences[0]}=a.nii.gz"
            raise InputError(
                f"the image has {kinds.get(has, f'{has} channels')}, the model wants "
                f"{kinds.get(wanted, f'{wanted} channels')}: {', '.join(self.card.sequences)}",
                where=volume.source,
                remedy=remedy,
            )
        return volume


def _measured(numbers: NDArray[np.int32], lesions: Sequence[Lesion], volume: Volume) -> list[Measurement]:
    """Lengths of each lesion, on axial slices however the scan is stored."""
    turn = turn_to_canonical(volume)
    upright = is_picture(volume.source) or volume.shape[0] == 1
    spacing = volume.spacing_mm
    if spacing is not None and not upright:
        z, y, x = (spacing[axis] for axis in turn.axes)
        spacing = (z, y, x)
    found = []
    for lesion in lesions:
        crop = numbers[tuple(slice(*side) for side in lesion.box)] == lesion.number
        found.append(measure(crop if upright else turn.apply(crop), spacing))
    return found


def _files(scan: Files) -> list[Path]:
    return [Path(scan)] if isinstance(scan, (str, Path)) else list(scan)


def usual_threshold(card: ModelCard, fusion: str) -> float:
    """The model file's; the majority where views vote, each by the model file's."""
    return 0.5 if fusion == "vote" else card.threshold


def load_model(path: Path | str, device: str = "auto", *, tta: bool = False, fusion: str = "mean") -> Model:
    """Load a model file for prediction.

    With *tta* (test-time augmentation) it looks at every mirror image too, four (2D) or eight (3D) times as long.
    *fusion* makes one answer of several networks and mirror images: "mean" (of logits), "max" or "vote". Raises
    ModelFileError, ConfigError.
    """
    chosen = choose_device(device)
    network, card = load_model_file(Path(path), chosen)
    return Model(fold_batch_norms(network), card, chosen, Path(path), Views(flips=tta, fusion=fusion))
