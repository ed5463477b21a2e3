"""Everything that a user chooses by name, each table once. Free of torch and numpy.

Settings take their choices and help from here, and the code that does the work takes what it must know of a choice.
A new network is one file under ``core/models`` and one row of ``NETWORKS``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from metaseg_cli.errors import ConfigError

# Networks ------------------------------------------------------------------------------------------------------------

# Channels per level, finest first, of both published networks' usual configuration.
DEFAULT_WIDTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class NetworkChoice:
    """What settings, plan and memory estimates must know of a network without importing it."""

    implementation: str  # "module:Class", imported when a network is built; the class fulfils models.network.Network
    aliases: tuple[str, ...] = ()  # other spellings, in lower case with hyphens
    training_maps: float  # maps of a level's width that training keeps per level: measured as peak memory
    inference_maps: float  # maps of the first level's width alive at once in prediction: measured as resident memory,
    # windows of 0.1 to 1 million voxels, 32 … 320 channels
    prunable: bool = False  # fulfils models.network.Prunable; its shallower depths are scored when training ends
    narrow_on_cpu: bool = False  # half the default widths for 2D on a processor: twice as many steps in the same time


NETWORKS = {
    "attention-unet": NetworkChoice(
        implementation="metaseg_cli.core.models.attention_unet:AttentionUNet",
        aliases=("attentionunet", "att-unet", "attunet", "attention-u-net"),
        training_maps=16,
        inference_maps=5.3,
    ),
    "nested-unet": NetworkChoice(
        implementation="metaseg_cli.core.models.nested_unet:NestedUNet",
        aliases=("nestedunet", "nested-u-net", "unet++", "u-net++", "unetpp", "unet-plus-plus", "unetplusplus"),
        training_maps=48,  # each node of a level reads all nodes before it
        inference_maps=13.7,
        prunable=True,
        narrow_on_cpu=True,
    ),
}
DEFAULT_NETWORK = "attention-unet"


def network_name(text: str) -> str:
    """Return the name with a hyphen for any accepted spelling (``nested_unet``, ``UNet++``, …). Raises ConfigError."""
    wanted = _with_hyphens(text)
    for name, network in NETWORKS.items():
        if wanted in (name, *network.aliases):
            return name
    near = difflib.get_close_matches(wanted, NETWORKS, n=1, cutoff=0.0)
    raise ConfigError(f"unknown model {text!r}", remedy=f"did you mean {near[0]}? There are {' and '.join(NETWORKS)}")


def is_network_name(text: str) -> bool:
    """Return whether *text* is one of the spellings of a network's name."""
    return any(_with_hyphens(text) in (name, *network.aliases) for name, network in NETWORKS.items())


def _with_hyphens(text: str) -> str:
    return text.strip().lower().replace("_", "-").replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class NormChoice:
    """A normalisation layer; ``window_statistics``: in prediction it depends on the window that a voxel lies in."""

    window_statistics: bool
    channels_last: bool = True  # whether convolutions run faster in channels last beside it: measured


NORMS = {
    "batch": NormChoice(window_statistics=False),
    "instance": NormChoice(window_statistics=True, channels_last=False),
    "group": NormChoice(window_statistics=True),
    "none": NormChoice(window_statistics=False),
}

# Negative slope of each activation; 0.01 is the default of torch and of nnU-Net.
ACTIVATIONS = {"relu": 0.0, "leaky-relu": 0.01}

# Training ------------------------------------------------------------------------------------------------------------

# Terms of ``core.losses`` and their weights. Sums weigh Dice and the loss per voxel alike, as nnU-Net does.
LOSSES = {
    "focal": {"focal": 1.0},
    "dice-focal": {"dice": 1.0, "focal": 1.0},
    "dice-ce": {"dice": 1.0, "cross-entropy": 1.0},
    "tversky-focal": {"tversky": 1.0, "focal": 1.0},
    "component-focal": {"dice": 0.5, "component-dice": 0.5, "focal": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice:
    """Defaults of an optimiser."""

    learning_rate: float
    weight_decay: float


OPTIMIZERS = {
    "adamw": OptimizerChoice(learning_rate=1e-3, weight_decay=1e-2),  # Loshchilov & Hutter 2019, and torch's defaults
    "sgd": OptimizerChoice(learning_rate=1e-2, weight_decay=3e-5),  # nnU-Net (Isensee et al. 2021)
}
SCHEDULES = ("poly", "cosine", "constant")

# Scoring -------------------------------------------------------------------------------------------------------------

# On which grid a model is scored: auto is the scan's own, unless no original file is left.
GRIDS = ("auto", "scan", "prepared")
# How reference and predicted lesions are matched: any overlap, or pairs with the largest sum of Dice.
MATCHINGS = ("overlap", "one-to-one")
CONNECTIVITIES = (6, 18, 26)
# Distances at which surfaces count as equal, in mm, or in pixels where there is no spacing.
TOLERANCES = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules by which lesions are told apart, matched and counted.

    By default, a reference lesion is found when any predicted voxel overlaps it. ``dilation`` steps (18 neighbours; 2D:
    8) merge reference lesions that come so near to one another, and let predicted lesions that come so near match.
    Reference lesions up to ``smallest_lesion_mm3`` leave all counts and means. ``penalty_mm`` replaces an infinite
    distance in means; None: the diagonal of the image. ``split_mm3`` scores lesions from this volume on by overlap and
    smaller ones by detection, where a Dice of ``hit_dice`` makes a hit. The fields are the keys of ``metrics.json``.
    """

    name: str = "default"
    connectivity: int = 26
    connectivity_2d: int = 8
    dilation: int = 0
    smallest_lesion_mm3: float = 0.0
    matching: str = "overlap"
    border_voxels: bool = False  # the surface of a lesion; whole masks are always measured by surfels
    penalty_mm: float | None = None
    split_mm3: float | None = None
    hit_dice: float = 0.0
    slices_are_volumes: bool = False  # a volume of one slice has a surface in space, not an outline

    def __post_init__(self) -> None:
        if self.connectivity not in CONNECTIVITIES:
            raise ConfigError(f"connectivity {self.connectivity} does not exist", remedy="choose 6, 18 or 26")
        if self.matching not in MATCHINGS:
            raise ConfigError(f"unknown matching {self.matching!r}", remedy=f"choose {' or '.join(MATCHINGS)}")

    def is_flat(self, slices: int, spacing_mm: tuple[float, ...] | None) -> bool:
        """Return whether a mask with this number of *slices* is measured as a picture, in 2D."""
        return slices == 1 and not (self.slices_are_volumes and spacing_mm is not None and len(spacing_mm) == 3)

    def neighbours(self, dims: int) -> int:
        """Return the connectivity of a mask with *dims* axes."""
        return self.connectivity if dims == 3 else self.connectivity_2d


PROTOCOLS = {
    "default": Protocol(),
    # The challenge's code of 2023 (Moawad et al. 2023, "The Brain Tumor Segmentation - Metastases Challenge").
    "brats-mets-2023": Protocol(
        name="brats-mets-2023", dilation=1, smallest_lesion_mm3=2.0, penalty_mm=374.0, slices_are_volumes=True
    ),
    # The challenge's evaluation package 0.0.8 with its mets configuration.
    "brats-mets-2026": Protocol(
        name="brats-mets-2026",
        connectivity_2d=4,
        matching="one-to-one",
        border_voxels=True,
        penalty_mm=373.0,
        split_mm3=27.0,
        hit_dice=0.2,
    ),
}

# Operating points ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OperatingRule:
    """What an operating point asks of post-processing on the validation cases.

    The highest lesion recall at no more than *most_false* false lesions per case (per patient, where the cases are
    slices); None: the best lesion F1. Then the best Dice. *as_good_as_plain*: neither Dice nor lesion F1 may be below
    those of the threshold 0.5 without a filter.
    """

    most_false: float | None
    as_good_as_plain: bool


OPERATING_POINTS = {
    "sensitive": OperatingRule(most_false=1.0, as_good_as_plain=True),
    "balanced": OperatingRule(most_false=None, as_good_as_plain=True),
    "specific": OperatingRule(most_false=0.1, as_good_as_plain=False),
}
DEFAULT_OPERATING_POINT = "sensitive"

NON_TARGET = ("count", "report")  # what clear growth of non-target lesions does in follow-up
BRATS_REGIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "brats-mets-2023": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
    "brats-mets-2026": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,), "RC": (4,)},
}


def find_protocol(name: str | None, **changes: float | str | None) -> Protocol:
    """Return the protocol *name* (None: the default) with those *changes* that are not None. Raises ConfigError."""
    if (name or "default") not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name or "default"]
    wanted: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    if not wanted:
        return protocol
    if "connectivity" in wanted:
        wanted["connectivity_2d"] = 4 if wanted["connectivity"] == 6 else 8
    return replace(protocol, name=f"{protocol.name}, changed", **wanted)


# Computation ---------------------------------------------------------------------------------------------------------

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MEMORY_FORMATS = ("auto", "channels-last", "contiguous")

# Prediction ----------------------------------------------------------------------------------------------------------

# How several networks and mirror images make one prediction: ``inference.tta``.
FUSIONS = ("mean", "max", "vote")


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """A program that runs a network on a CPU."""

    packages: tuple[str, ...] = ()
    automatic: bool = False  # taken without being asked for where it is installed, in the order of the table
    implementation: str = ""  # "module:function" that converts a network; none for torch, which needs no conversion


BACKENDS = {
    "torch": BackendChoice(),
    "onnx": BackendChoice(
        packages=("onnxruntime", "onnxscript"),
        implementation="metaseg_cli.core.inference.onnx_backend:convert",
    ),
    "openvino": BackendChoice(
        packages=("openvino",),
        automatic=True,  # measured: half of torch's time; ONNX Runtime takes twice OpenVINO's time and memory
        implementation="metaseg_cli.core.inference.openvino_backend:convert",
    ),
}
DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # examples: any device of torch


@dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """A format that masks are written in. ``writer`` is "module:function" of an ``images.mask_formats.MaskWriter``."""

    suffix: str
    writer: str = "metaseg_cli.core.images.mask_formats:write_image_file"
    one_slice: bool = False  # a volume does not fit
    holds_maps: bool = False  # probabilities are written in it too; else in the scan's own format
    of_series: str = ""  # the standard's name of what only a DICOM series can have


MASK_FORMATS = {
    "nifti": MaskFormat(suffix=".nii.gz", holds_maps=True),
    "nrrd": MaskFormat(suffix=".nrrd", holds_maps=True),
    "mha": MaskFormat(suffix=".mha", holds_maps=True),
    "png": MaskFormat(suffix=".png", one_slice=True, holds_maps=True),
    "dicom-seg": MaskFormat(
        suffix=".dcm",
        writer="metaseg_cli.core.images.mask_formats:write_dicom_seg",
        of_series="DICOM SEG",
    ),
    "rtstruct": MaskFormat(
        suffix=".dcm",
        writer="metaseg_cli.core.images.mask_formats:write_dicom_rtstruct",
        of_series="RTSTRUCT",
    ),
}

# Data ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout of a folder of cases. ``module`` has ``looks_like`` and ``find``; ``example`` shows it to the user."""

    module: str
    example: str


# The more specific ones first: "auto" takes the first that fits.
LAYOUTS = {
    "nnunet": LayoutChoice(
        module="metaseg_cli.core.datasets.nnunet", example="imagesTr with labelsTr (nnU-Net, Decathlon)"
    ),
    "decathlon": LayoutChoice(module="metaseg_cli.core.datasets.decathlon", example=""),  # the same folders
    "bids": LayoutChoice(module="metaseg_cli.core.datasets.bids", example="sub-01/anat (BIDS)"),
    "brats": LayoutChoice(
        module="metaseg_cli.core.datasets.brats", example="case7-t1c.nii.gz beside case7-seg.nii.gz (BraTS)"
    ),
    "dicom": LayoutChoice(module="metaseg_cli.core.datasets.dicom", example="folders of DICOM files"),
    "pairs": LayoutChoice(
        module="metaseg_cli.core.datasets.pairs",
        example="images/case7.png beside masks/case7.png, patient3/slice_07.png beside patient3/slice_07_mask.png",
    ),
}
