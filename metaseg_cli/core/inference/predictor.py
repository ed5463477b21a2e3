"""A trained model as Python sees it: load once, predict scans or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaseg_cli.core.detection import Lesion, find_lesions
from metaseg_cli.core.images import Volume, axial_view
from metaseg_cli.core.inference.backends import AcceleratedNetwork, accelerate, decide_together
from metaseg_cli.core.inference.channels import Scan, as_channels
from metaseg_cli.core.inference.device import choose_device, choose_precision, to_memory_format
from metaseg_cli.core.inference.memory import IMAGE_COPIES, PROGRAM_BYTES, WEIGHT_COPIES, fitting_windows, weight_bytes
from metaseg_cli.core.inference.sliding_window import AfterWindow, InferenceSettings, predict_probabilities
from metaseg_cli.core.inference.tta import TestTimeAugmentation
from metaseg_cli.core.inference.unlike_training import described, differences, refuse_unlike
from metaseg_cli.core.inference.windows import tile
from metaseg_cli.core.label_maps import region_masks, to_label_map
from metaseg_cli.core.measurements import Measurement, measure
from metaseg_cli.core.model_file import Ensemble, ModelCard, load_model_file
from metaseg_cli.core.models.blocks import fold_batch_norms
from metaseg_cli.core.models.network import Prunable
from metaseg_cli.core.postprocessing import Postprocessing, to_mask
from metaseg_cli.core.preprocessing import GridMapping, Preprocessing, preprocess

_FORMER_FILTER = (
    "the model file is of an older version: its filter for small lesions, which could delete metastases, is not applied"
)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model found in one scan, on the scan's own grid.

    ``mask`` is ``(Z, Y, X)`` uint8 with the label values of the model's regions; ``masks`` and ``probabilities``
    ``(R, Z, Y, X)`` have a layer for each region, ``lesions`` its connected lesions, and ``measurements`` their
    lengths, in the same order. ``source`` is the scan (its first sequence, on whose grid everything lies), ``notes``
    say what was missing or assumed. ``disagreement``, when requested, is the standard deviation of the probabilities
    over several networks or mirror images; ``backend`` is the program that computed them.
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
    index_region: str  # that lesions are counted and numbered in

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Entropy of each voxel's probability in bits, ``(R, Z, Y, X)``: 0 where it is sure, 1 at 0.5."""
        p = np.clip(self.probabilities, 1e-7, 1 - 1e-7)
        entropy: NDArray[np.float32] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        return np.clip(entropy, 0, 1)


@dataclass(frozen=True)
class ModelInput:
    """A scan as the network sees it: ``image (C, Z, Y, X)`` on its grid, and which sequences are ``available (C,)``."""

    volume: Volume
    image: NDArray[np.float32]
    available: NDArray[np.bool_]
    mapping: GridMapping


@dataclass(frozen=True)
class RawPrediction:
    """Probabilities before any threshold, on the scan's own grid: ``(R, Z, Y, X)`` each."""

    probabilities: NDArray[np.float32]
    disagreement: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()
    backend: str = "torch"  # the program that computed them


class Model:
    """A network with its card, ready to predict. Made by ``load_model``.

    ``torch_network`` is the network itself; ``network`` runs it through the chosen backend. The same scan gives the
    same probabilities whatever was predicted before it: program, windows and batches follow from model and scan alone.
    """

    def __init__(
        self,
        network: nn.Module,
        card: ModelCard,
        device: torch.device,
        path: Path,
        tta: TestTimeAugmentation | None = None,
        max_memory: int | None = None,
        backend: str = "auto",
    ) -> None:
        self.card, self.device, self.path, self.max_memory = card, device, path, max_memory
        self.precision = choose_precision("auto", device)
        self.torch_network = to_memory_format(network, card.dims, card.norm)
        self.network = accelerate(self.torch_network, card, backend, self.precision, device)
        self.tta = replace(
            tta or TestTimeAugmentation(),
            thresholds=tuple(each.threshold for each in card.of_regions()),
            temperature=card.temperature,
        )
        self.preprocessing = Preprocessing.from_record(card.preprocessing)

    def predict(
        self,
        scan: Scan,
        threshold: float | None = None,
        *,
        postprocess: bool = True,
        fill_holes: bool = False,
        disagreement: bool = False,
        strict: bool = False,
        after_window: AfterWindow | None = None,
    ) -> Prediction:
        """Segment *scan*: a file, an array ``(C, Z, Y, X)`` or ``(C, Y, X)``, or a file per sequence name.

        An array's channels are the model's sequences in their order. *threshold* replaces the one in the model file;
        ``postprocessing`` says what *postprocess* and *fill_holes* do. A scan that is unlike the training data gets
        a note; with *strict* it is refused. *after_window* hears how many windows are done, and of how many. Raises
        InputError when the scan cannot be read or its channels are not those the model was trained on.
        """
        settings = self.postprocessing(threshold, postprocess=postprocess, fill_holes=fill_holes)
        model_input = self.load_input(scan, strict=strict)
        raw = self.infer(model_input, disagreement=disagreement, after_window=after_window)
        return self.postprocess(model_input.volume, raw, settings)

    def load_input(self, scan: Scan, *, strict: bool = False) -> ModelInput:
        """Read and preprocess *scan*: the first step of ``predict``, without the network. Raises InputError."""
        volume, available = as_channels(self.card, scan)
        missing = [s for s, there in zip(self.card.sequences, available, strict=True) if not there]
        image, mapping = preprocess(volume, self.preprocessing)
        unlike = differences(self.card, volume, mapping, described(self.card, image, available, mapping))
        if strict:
            refuse_unlike(unlike, volume.source)
        volume = replace(volume, notes=(*volume.notes, *unlike))
        if missing:
            whole = np.zeros((len(self.card.sequences), *image.shape[1:]), np.float32)
            whole[available] = image
            image = whole
            note = f"predicted without {', '.join(missing)}: expect less of it"
            volume = replace(volume, notes=(*volume.notes, note))
        return ModelInput(volume, image, available, mapping)

    def infer(
        self, model_input: ModelInput, *, disagreement: bool = False, after_window: AfterWindow | None = None
    ) -> RawPrediction:
        """Run the network: the second step of ``predict``.

        With *disagreement*, also return the standard deviation over its passes.
        """
        values, notes = self._infer(
            torch.from_numpy(model_input.image),
            torch.from_numpy(model_input.available),
            replace(self.tta, std=disagreement),
            after_window,
        )
        # Interpolation of values between 0 and 1 may leave the range by rounding.
        placed = model_input.mapping.invert(values)
        np.clip(placed, 0.0, 1.0, out=placed)
        regions = self.card.out_channels
        return RawPrediction(placed[:regions], placed[regions:] if disagreement else None, notes, self.backend)

    def postprocess(self, volume: Volume, raw: RawPrediction, settings: Sequence[Postprocessing]) -> Prediction:
        """Find masks and lesions in *volume*: the last step of ``predict``. *settings* hold one entry per region."""
        spacing = volume.spacing_mm
        label = self.label_map(raw.probabilities, spacing, settings)
        # What is counted and measured is what the mask that is written says, also where regions are not nested.
        masks = region_masks(label, self.card.regions)
        lesions, measurements = {}, {}
        for region, mask, probability in zip(self.card.regions, masks, raw.probabilities, strict=True):
            numbers, lesions[region] = find_lesions(mask, spacing, probability)
            measurements[region] = _measured(numbers, lesions[region], volume)
        return Prediction(
            mask=label,
            masks=masks,
            probabilities=raw.probabilities,
            lesions=lesions,
            measurements=measurements,
            source=volume,
            notes=(*volume.notes, *raw.notes, *((_FORMER_FILTER,) if self.card.former_filter else ())),
            disagreement=raw.disagreement,
            backend=raw.backend,
            index_region=self.card.index_region,
        )

    def label_map(
        self,
        probabilities: NDArray[np.float32],
        spacing_mm: tuple[float, float, float] | None,
        settings: Sequence[Postprocessing],
    ) -> NDArray[np.uint8]:
        """Return the mask ``(Z, Y, X)`` that is written of ``(R, Z, Y, X)``; *settings* hold one entry per region."""
        masks = [to_mask(each, own, spacing_mm) for each, own in zip(probabilities, settings, strict=True)]
        return to_label_map(np.stack(masks), self.card.regions)

    def postprocessing(
        self, threshold: float | None = None, *, postprocess: bool = True, fill_holes: bool = False
    ) -> tuple[Postprocessing, ...]:
        """Return the post-processing of each region, as ``resolve_postprocessing`` does."""
        return resolve_postprocessing(
            self.card, self.tta.fusion, threshold, postprocess=postprocess, fill_holes=fill_holes
        )

    def probabilities(
        self, image: Tensor, available: Tensor | None = None, after_window: AfterWindow | None = None
    ) -> NDArray[np.float32]:
        """Predict *image* ``(C, Z, Y, X)``, preprocessed as in training → calibrated ``(R, Z, Y, X)`` on the same grid.

        *available* ``(C,)`` bool: which sequences the case has; None: all.
        """
        return self._infer(image, available, self.tta, after_window)[0]

    @property
    def backend(self) -> str:
        """The program that computes: torch, openvino or onnx; known from the first scan on."""
        return next((member.used for member in self._accelerated), "torch")

    @property
    def backend_note(self) -> str:
        """Why it is not the program that is usual on this machine; empty where it is."""
        return next((member.note for member in self._accelerated), "")

    @property
    def n_passes(self) -> int:
        """The number of passes that make one prediction: networks times mirror images."""
        return self.tta.n_passes(self.card.dims, self.card.members)

    @property
    def _accelerated(self) -> list[AcceleratedNetwork]:
        return [each for each in self.network.modules() if isinstance(each, AcceleratedNetwork)]

    def _infer(
        self,
        image: Tensor,
        available: Tensor | None,
        tta: TestTimeAugmentation,
        after_window: AfterWindow | None,
    ) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        """Return probabilities on the grid of *image*, and notes."""
        if self.card.presence and available is None:
            available = torch.ones(len(self.card.sequences), dtype=torch.bool)
        settings, notes = self._settings(image, tta)
        decide_together(self._accelerated)
        told = available if self.card.presence else None
        values = predict_probabilities(self.network, image.to(self.device), settings, told, after_window)
        return values.numpy(), notes

    def _settings(self, image: Tensor, tta: TestTimeAugmentation) -> tuple[InferenceSettings, tuple[str, ...]]:
        """Return how *image* is predicted, and a note where memory makes windows smaller than usual."""
        usual = replace(InferenceSettings.of(self.card, self.precision), tta=tta)
        if self.max_memory is None or self.device.type != "cpu":
            return usual, ()
        size = image.shape[-self.card.dims :]
        shape = tile(size, usual.patch, usual.largest).shape
        # Not what the process takes at this moment: that depends on what it did before, and the windows would too.
        held = PROGRAM_BYTES + WEIGHT_COPIES * weight_bytes(self.torch_network) + IMAGE_COPIES * 4 * image.numel()
        # The result is in memory once on the network's grid, and up to twice on its way to the scan's, in float32.
        left = self.max_memory - held - 3 * 4 * usual.layers * image[0].numel()
        if self.card.dims == 3:  # sums and weights of the slab that windows reach, and the part of it that stays
            left -= 6 * (usual.layers + 1) * shape[0] * size[1] * size[2]
        patch, largest = fitting_windows(self.card, usual.largest, self.precision, self.n_passes, left)
        fitting = replace(usual, patch=patch, largest=largest)
        if tile(size, patch, largest).shape == shape:
            return fitting, ()
        return fitting, ("smaller windows than usual for want of memory: the mask may differ a little",)


def _measured(numbers: NDArray[np.int32], lesions: Sequence[Lesion], volume: Volume) -> list[Measurement]:
    """Measure each lesion on axial slices, however the scan is stored."""
    reorientation = axial_view(volume)
    spacing = volume.spacing_mm
    if spacing is not None and reorientation is not None:
        z, y, x = (spacing[axis] for axis in reorientation.axes)
        spacing = (z, y, x)
    found = []
    for lesion in lesions:
        crop = numbers[tuple(slice(*side) for side in lesion.box)] == lesion.number
        found.append(measure(reorientation.apply(crop) if reorientation else crop, spacing))
    return found


def resolve_postprocessing(
    card: ModelCard, fusion: str, threshold: float | None = None, *, postprocess: bool = True, fill_holes: bool = False
) -> tuple[Postprocessing, ...]:
    """Return what is done to each region's probabilities: what the model file says, or with another *threshold*.

    Without *postprocess* only the threshold, by default 0.5. *fill_holes* fills what a lesion encloses.
    """
    usual = card.of_regions()
    if not postprocess:
        usual = tuple(Postprocessing(per_slice=each.per_slice) for each in usual)
    elif fusion == "vote":  # each vote was cast with the threshold and the hysteresis already
        usual = tuple(Postprocessing(min_size=each.min_size, per_slice=each.per_slice) for each in usual)
    if threshold is not None:
        usual = tuple(each.with_threshold(threshold) for each in usual)
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
    operating_point: str | None = None,
) -> Model:
    """Load a model file for prediction.

    *tta* (test-time augmentation) predicts every mirror image too, which takes four (2D) or eight (3D) times as long.
    *fusion* says how several networks and mirror images make one prediction: "mean" (of logits), "max" or "vote".
    *depth* prunes a network that can be pruned: "1", "2", …, "auto" (see ``ModelCard.at_depth``). *max_memory* limits
    the bytes of the process on a CPU; windows become smaller before it is exceeded. *backend* runs the network on a
    CPU: "torch", "onnx", "openvino", or "auto", the fastest that is installed and agrees with torch. *operating_point*
    is "sensitive", "balanced" or "specific"; None: what the training stored as default. Raises ModelFileError,
    ConfigError.
    """
    chosen = choose_device(device)
    network, card = load_model_file(Path(path), chosen)
    cut, card = card.at_depth(depth)
    card = card.at_operating_point(operating_point)
    if cut is not None:
        network = _pruned(network, cut)
    passes = TestTimeAugmentation(flips=tta, fusion=fusion)
    return Model(fold_batch_norms(network), card, chosen, Path(path), passes, max_memory, backend)


def _pruned(network: nn.Module, depth: int) -> nn.Module:
    if isinstance(network, Ensemble):
        return Ensemble([_pruned(member, depth) for member in network.members])
    assert isinstance(network, Prunable)
    return network.pruned(depth)
