"""Everything that a user chooses by name, each table once. Free of torch and numpy.

Settings take their choices and help from here, and the code that does the work takes what it must know of a choice.
A new network is one file under ``core/models`` and one row of ``NETWORKS``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

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

# Terms of ``core.losses`` and their weights.
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
    conversion_seconds: float = 0.0  # measured, about; decides whether a conversion pays
    implementation: str = ""  # "module:function" that converts a network; none for torch, which needs no conversion


BACKENDS = {
    "torch": BackendChoice(),
    "onnx": BackendChoice(
        packages=("onnxruntime", "onnxscript"),
        conversion_seconds=12.0,
        implementation="metaseg_cli.core.inference.onnx_backend:convert",
    ),
    "openvino": BackendChoice(
        packages=("openvino",),
        conversion_seconds=0.7,
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
    of_series: str = ""  # the standard's name of what only a DICOM series can have


MASK_FORMATS = {
    "nifti": MaskFormat(suffix=".nii.gz"),
    "nrrd": MaskFormat(suffix=".nrrd"),
    "mha": MaskFormat(suffix=".mha"),
    "png": MaskFormat(suffix=".png", one_slice=True),
    "dicom-seg": MaskFormat(
        suffix=".dcm", writer="metaseg_cli.core.images.mask_formats:write_dicom_seg", of_series="DICOM SEG"
    ),
    "rtstruct": MaskFormat(
        suffix=".dcm", writer="metaseg_cli.core.images.mask_formats:write_dicom_rtstruct", of_series="RTSTRUCT"
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
