"""A trained model as Python sees it: load once, predict scans or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaseg_cli.core.images import Volume, is_picture, turn_to_canonical
from metaseg_cli.core.inference.backends import Accelerated, accelerated
from metaseg_cli.core.inference.channels import Scan, as_channels
from metaseg_cli.core.inference.device import choose_device, choose_precision, lay_out
from metaseg_cli.core.inference.ensemble import Views
from metaseg_cli.core.inference.memory import fitting_windows
from metaseg_cli.core.inference.sliding_window import predict_probabilities
from metaseg_cli.core.inference.windows import largest_window, tile
from metaseg_cli.core.measurements import Measurement, measure
from metaseg_cli.core.memory import resident_memory
from metaseg_cli.core.metrics import Lesion, find_lesions
from metaseg_cli.core.model_file import Ensemble, ModelCard, load_model_file
from metaseg_cli.core.models.blocks import fold_batch_norms
from metaseg_cli.core.models.network import Prunable
from metaseg_cli.core.postprocessing import Postprocessing, to_label_map, to_mask
from metaseg_cli.core.preprocessing import Placement, Preprocessing, preprocess


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model found in one scan, on the scan's own grid.

    ``mask`` is ``(Z, Y, X)`` uint8 with the label values of the model's regions; ``masks`` and ``probabilities``
    ``(R, Z, Y, X)`` have a layer for each region, ``lesions`` its connected lesions, and ``measurements`` their
    lengths, in the same order. ``source`` is the scan (the first sequence, whose grid everything has), ``notes`` say
    what was missing or assumed. ``disagreement``, when asked for, is the standard deviation of the probabilities that
    several networks or mirror images gave; ``backend`` is the program that computed them.
    """

    mask: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    lesions: dict[str, list[Lesion]]
    measurements: dict[str, list[Measurement]]
    source: Volume
    notes: tuple[str, ...] = ()
    disagreement: NDArray[np.float32] | None = None
    backend: str = "torch"

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Entropy of each voxel's probability in bits, ``(R, Z, Y, X)``: 0 where it is sure, 1 at 0.5."""
        p = np.clip(self.probabilities, 1e-7, 1 - 1e-7)
        entropy: NDArray[np.float32] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        return np.clip(entropy, 0, 1)


@dataclass(frozen=True)
class Input:
    """A scan as the network sees it: ``image (C, Z, Y, X)`` on its grid, and which of its sequences are there."""

    volume: Volume
    image: NDArray[np.float32]
    present: NDArray[np.bool_]
    placement: Placement


@dataclass(frozen=True)
class Answer:
    """What the network says of a scan, on the scan's own grid: ``(R, Z, Y, X)`` each."""

    probabilities: NDArray[np.float32]
    disagreement: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    backend: str = "torch"  # which computed it


class Model:
    """A network with its card, ready to predict. Made by ``load_model``."""

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        device: torch.device,
        path: Path,
        views: Views | None = None,
        max_memory: int | None = None,
        backend: str = "auto",
    ) -> None:
        self.network, self.card, self.device, self.path = lay_out(network, card.dims, card.norm), card, device, path
        self.precision = choose_precision("auto", device)
        self.scans = 1  # how many are expected, this one included: what pays for one may not pay for many
        self._asked = accelerated(self.network, card, backend, self.precision, device)
        self.views = replace(
            views or Views(),
            thresholds=tuple(each.threshold for each in card.of_regions()),
            temperature=card.temperature,
        )
        self.preprocessing = Preprocessing.from_record(card.preprocessing)
        self.max_memory = max_memory

    def predict(
        self,
        scan: Scan,
        threshold: float | None = None,
        *,
        postprocess: bool = True,
        fill_holes: bool = False,
        disagreement: bool = False,
    ) -> Prediction:
        """Segment *scan*: a file, an array ``(C, Z, Y, X)`` or ``(C, Y, X)``, or a file per sequence name.

        An array's channels are the model's sequences in their order. *threshold* replaces the one in the model file;
        ``settings_of`` says what *postprocess* and *fill_holes* do. Raises InputError when the scan cannot be read or
        its channels are not those the model was trained on.
        """
        given = self.read(scan)
        answer = self.look(given, disagreement=disagreement)
        return self.interpret(given.volume, answer, threshold, postprocess=postprocess, fill_holes=fill_holes)

    def read(self, scan: Scan) -> Input:
        """The first third of ``predict``: reading and preprocessing, without the network."""
        volume, present = as_channels(self.card, scan)
        missing = [s for s, there in zip(self.card.sequences, present, strict=True) if not there]
        image, placement = preprocess(volume, self.preprocessing)
        if missing:
            whole = np.zeros((len(self.card.sequences), *image.shape[1:]), np.float32)
            whole[present] = image
            image = whole
            note = f"predicted without {', '.join(missing)}: expect less of it"
            volume = replace(volume, notes=(*volume.notes, note))
        return Input(volume, image, present, placement)

    def look(self, given: Input, *, disagreement: bool = False) -> Answer:
        """The second third: the network's answer, and with *disagreement* how far its views lie apart."""
        views = replace(self.views, spread=disagreement)
        values, notes = self._values(torch.from_numpy(given.image), torch.from_numpy(given.present), views)
        # Interpolation of values between 0 and 1 may leave the range by rounding.
        placed = given.placement.undo(values)
        np.clip(placed, 0.0, 1.0, out=placed)
        regions = self.card.out_channels
        return Answer(placed[:regions], placed[regions:] if disagreement else None, notes, self.backend)

    def probabilities(self, image: Tensor, present: Tensor | None = None) -> NDArray[np.float32]:
        """*image* ``(C, Z, Y, X)``, preprocessed as in training → calibrated ``(R, Z, Y, X)`` on the same grid.

        *present* ``(C,)`` bool: which sequences are there; None: all.
        """
        return self._values(image, present, self.views)[0]

    def _values(
        self, image: Tensor, present: Tensor | None, views: Views
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        if self.card.presence and present is None:
            present = torch.ones(len(self.card.sequences), dtype=torch.bool)
        patch, largest = self.card.patch[-self.card.dims :], largest_window(self.card.norm)
        size = image.shape[-self.card.dims :]
        notes: tuple[str, ...] = ()
        if self.max_memory is not None and self.device.type == "cpu":
            # The answer is there once on the network's grid, and up to twice on its way to the scan's.
            layers = self.card.out_channels * (2 if views.spread else 1)
            left = self.max_memory - resident_memory() - 3 * 4 * layers * image[0].numel()
            usual = tile(size, patch, largest)
            if self.card.dims == 3:  # sums and weights of the slab that windows reach, and the part of it that stays
                left -= 6 * (layers + 1) * usual.shape[0] * size[1] * size[2]
            patch, largest = fitting_windows(self.card, largest, self.precision, self.looks, left)
            if tile(size, patch, largest).shape != usual.shape:
                notes = ("smaller windows than usual for want of memory: the mask may differ a little",)
        voxels = tile(size, patch, largest).voxels * (image.shape[1] if self.card.dims == 2 else 1)
        for member in self._accelerated:
            member.expect(voxels * self.scans * self.looks / self.card.members)
        values: NDArray[np.float32] = predict_probabilities(
            self._asked,
            image.to(self.device),
            dims=self.card.dims,
            context=self.card.context,
            patch=patch,
            largest=largest,
            regions=self.card.out_channels,
            precision=self.precision,
            present=present if self.card.presence else None,
            views=views,
        ).numpy()
        return values, notes

    def interpret(
        self,
        volume: Volume,
        answer: Answer,
        threshold: float | None = None,
        *,
        postprocess: bool = True,
        fill_holes: bool = False,
    ) -> Prediction:
        """The last third: masks and lesions that *answer* means for *volume*."""
        probabilities = answer.probabilities
        spacing = volume.spacing_mm
        settings = settings_of(self.card, self.views.fusion, threshold, postprocess=postprocess, fill_holes=fill_holes)
        masks = np.stack([to_mask(p, each, spacing) for p, each in zip(probabilities, settings, strict=True)])
        lesions, measurements = {}, {}
        for region, mask, probability in zip(self.card.regions, masks, probabilities, strict=True):
            numbers, lesions[region] = find_lesions(mask, spacing, probability)
            measurements[region] = _measured(numbers, lesions[region], volume)
        return Prediction(
            mask=to_label_map(masks, self.card.regions),
            masks=masks,
            probabilities=probabilities,
            lesions=lesions,
            measurements=measurements,
            source=volume,
            notes=(*volume.notes, *answer.notes),
            disagreement=answer.disagreement,
            backend=answer.backend,
        )

    @property
    def backend(self) -> str:
        """The program that computed the last scan: torch, openvino or onnx."""
        return next((member.used for member in self._accelerated), "torch")

    @property
    def _accelerated(self) -> list[Accelerated]:
        return [each for each in self._asked.modules() if isinstance(each, Accelerated)]

    @property
    def looks(self) -> int:
        """How many answers become one: networks times mirror images."""
        return self.card.members * (2**self.card.dims if self.views.flips else 1)


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


def settings_of(
    card: ModelCard, fusion: str, threshold: float | None = None, *, postprocess: bool = True, fill_holes: bool = False
) -> tuple[Postprocessing, ...]:
    """What is done to each region's probabilities: the model file's, or with another *threshold*.

    Without *postprocess* only the threshold, by default 0.5.
    """
    usual = card.of_regions()
    if not postprocess:
        usual = (Postprocessing(),) * len(usual)
    elif fusion == "vote":  # shares of votes: the threshold and all else that is tuned went into each of them
        usual = tuple(Postprocessing(smallest_lesion=each.smallest_lesion) for each in usual)
    if threshold is not None:
        usual = tuple(each.at(threshold) for each in usual)
    return tuple(replace(each, fill_holes=True) for each in usual) if fill_holes else usual


def load_model(
    path: Path | str,
    device: str = "auto",
    *,
    tta: bool = False,
    fusion: str = "mean",
    depth: str = "full",
    max_memory: int | None = None,
    backend: str = "auto",
) -> Model:
    """Load a model file for prediction.

    With *tta* (test-time augmentation) it looks at every mirror image too, four (2D) or eight (3D) times as long.
    *fusion* makes one answer of several networks and mirror images: "mean" (of logits), "max" or "vote". *depth* cuts a
    nested-unet: "1", "2", …, "auto" (see ``ModelCard.at_depth``). *max_memory* are the bytes that the process may have
    on a processor; windows become smaller than usual before that is passed. *backend* computes there: "torch", "onnx",
    "openvino", or "auto", the fastest that is installed and agrees with torch. Raises ModelFileError, ConfigError.
    """
    chosen = choose_device(device)
    network, card = load_model_file(Path(path), chosen)
    cut, card = card.at_depth(depth)
    if cut is not None:
        network = _cut(network, cut)
    views = Views(flips=tta, fusion=fusion)
    return Model(fold_batch_norms(network), card, chosen, Path(path), views, max_memory, backend)


def _cut(network: nn.Module, depth: int) -> nn.Module:
    if isinstance(network, Ensemble):
        return Ensemble([_cut(member, depth) for member in network.members])
    assert isinstance(network, Prunable)
    return network.pruned(depth)
