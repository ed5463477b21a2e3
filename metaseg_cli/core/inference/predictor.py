"""A trained model as Python sees it: load once, predict scans or arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaseg_cli.core.images import Volume, as_grey, channels_are_equal, read_image
from metaseg_cli.core.inference.device import choose_device, choose_precision, lay_out
from metaseg_cli.core.inference.sliding_window import predict_probabilities
from metaseg_cli.core.metrics import Lesion, describe_lesions
from metaseg_cli.core.model_file import ModelCard, load_model_file
from metaseg_cli.core.models.blocks import fold_batch_norms
from metaseg_cli.core.postprocessing import Postprocessing, to_label_map, to_mask
from metaseg_cli.core.preprocessing import normalise
from metaseg_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model found in one scan, on the scan's own grid.

    ``mask`` is ``(Z, Y, X)`` uint8 with the label values of the model's regions, ``probabilities``
    ``(R, Z, Y, X)`` float32, ``lesions`` the connected lesions of each region.
    """

    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    lesions: dict[str, list[Lesion]]
    source: Volume


class Model:
    """A network with its card, ready to predict. Made by ``load_model``."""

    def __init__(self, network: nn.Module, card: ModelCard, device: torch.device, path: Path) -> None:
        self.network, self.card, self.device, self.path = lay_out(network, card.dims, card.norm), card, device, path
        self.precision = choose_precision("auto", device)

    def predict(
        self, scan: Path | str | NDArray[np.generic] | Mapping[str, Path | str] | Volume, threshold: float | None = None
    ) -> Prediction:
        """Segment *scan*: a file, an array ``(C, Z, Y, X)`` or ``(C, Y, X)``, or a file per sequence name.

        *threshold* replaces the one in the model file. Raises InputError when the scan cannot be read or its
        channels are not those the model was trained on.
        """
        volume = self._fitted(self._volume(scan))
        image = torch.from_numpy(normalise(volume.array, "slice" if self.card.normalisation == "slice" else "case"))
        return self.interpret(volume, self.probabilities(image), threshold)

    def probabilities(self, image: Tensor) -> NDArray[np.float32]:
        """*image* ``(C, Z, Y, X)``, normalised as in training → ``(R, Z, Y, X)``."""
        values: NDArray[np.float32] = predict_probabilities(
            self.network,
            image.to(self.device),
            dims=self.card.dims,
            patch=self.card.patch[-self.card.dims :],
            regions=self.card.out_channels,
            precision=self.precision,
        ).numpy()
        return values

    def interpret(
        self, volume: Volume, probabilities: NDArray[np.float32], threshold: float | None = None
    ) -> Prediction:
        """Masks and lesions that *probabilities* ``(R, Z, Y, X)`` of *volume* mean at *threshold*."""
        settings = Postprocessing(
            threshold=self.card.threshold if threshold is None else threshold,
            smallest_lesion_voxels=self.card.smallest_lesion_voxels,
        )
        masks = np.stack([to_mask(p, settings) for p in probabilities])
        lesions = {
            region: describe_lesions(mask, volume.spacing_mm, probability)
            for region, mask, probability in zip(self.card.regions, masks, probabilities, strict=True)
        }
        return Prediction(
            mask=to_label_map(masks, self.card.regions), probabilities=probabilities, lesions=lesions, source=volume
        )

    def _volume(self, scan: Path | str | NDArray[np.generic] | Mapping[str, Path | str] | Volume) -> Volume:
        if isinstance(scan, Volume):
            return scan
        if isinstance(scan, (str, Path)):
            return read_image(Path(scan))
        if isinstance(scan, Mapping):
            return self._from_sequences(scan)
        array = np.asarray(scan)
        if array.ndim == 3:
            array = array[:, None]
        if array.ndim != 4:
            raise InputError(
                f"an array of shape {array.shape} is not an image", remedy="pass (C, Z, Y, X) or (C, Y, X)"
            )
        if not np.isfinite(array).all():
            raise InputError("the array holds values that are not finite", remedy="replace NaN and Inf first")
        return Volume(array=array, spacing_mm=None, source=Path("array"))

    def _from_sequences(self, scans: Mapping[str, Path | str]) -> Volume:
        missing = [name for name in self.card.sequences if name not in scans]
        if missing or len(scans) != len(self.card.sequences):
            raise InputError(
                f"the model wants the sequences {', '.join(self.card.sequences)}, got {', '.join(scans)}",
                remedy="name one file per sequence",
            )
        volumes = [read_image(Path(scans[name])) for name in self.card.sequences]
        if len({volume.shape for volume in volumes}) > 1:
            raise InputError("the sequences differ in size", remedy="bring them onto one grid first")
        first = volumes[0]
        return Volume(
            array=np.concatenate([volume.array for volume in volumes]),
            spacing_mm=first.spacing_mm,
            source=first.source,
            origin_mm=first.origin_mm,
            direction=first.direction,
        )

    def _fitted(self, volume: Volume) -> Volume:
        """*volume* with the model's channels; a grey picture saved in colour is taken as grey."""
        wanted = self.card.in_channels
        if volume.array.shape[0] != wanted and wanted == 1 and channels_are_equal(volume):
            volume = as_grey(volume)
        has = volume.array.shape[0]
        if has != wanted:
            kinds = {1: "1 channel (grey)", 3: "3 channels (colour)"}
            raise InputError(
                f"the image has {kinds.get(has, f'{has} channels')}, the model wants "
                f"{kinds.get(wanted, f'{wanted} channels')}: {', '.join(self.card.sequences)}",
                where=volume.source,
                remedy="give it images of the kind it was trained on, or choose another model with --model",
            )
        return volume


def load_model(path: Path | str, device: str = "auto") -> Model:
    """Load a model file for prediction. Raises ModelFileError."""
    chosen = choose_device(device)
    network, card = load_model_file(Path(path), chosen)
    return Model(fold_batch_norms(network), card, chosen, Path(path))
