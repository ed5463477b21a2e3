"""Settings that several commands share, and how a text names regions."""

from __future__ import annotations

from typing import Annotated

from metaseg_cli.config.setting import Setting
from metaseg_cli.core.choices import DEVICES, OPERATING_POINTS
from metaseg_cli.errors import ConfigError

Cluster = Annotated[
    str | None,
    Setting(
        help="Dask cluster that does the work: its scheduler's address (tcp://host:8786) or scheduler file.",
        shown_default="this computer",
    ),
]
Device = Annotated[str, Setting(help=f"Where the network runs: {', '.join(DEVICES)}.")]
Model = Annotated[
    str | None, Setting(help="Model file, run folder, or architecture.", shown_default="the newest finished run")
]
OperatingPoint = Annotated[
    str | None,
    Setting(
        help="Which post-processing of the model: sensitive (most lesions at no more than one false one per case), "
        "balanced (best lesion F1) or specific (at most 0.1 false ones per case).",
        choices=tuple(OPERATING_POINTS),
        shown_default="the model's own",
    ),
]
Strict = Annotated[
    bool,
    Setting(help="Refuse scans that are unlike the training data: voxel size, field of view, sequence, contrast."),
]
Structures = Annotated[
    str | None,
    Setting(
        help="Structures of an RTSTRUCT, or segments of a SEG or .seg.nrrd, that are lesions: names separated by "
        "commas; * stands for anything, as in 'GTV*,Met 1'.",
        shown_default="by their names: GTV, metastasis, lesion, tumour …",
    ),
]
Threshold = Annotated[
    float | None,
    Setting(
        help="Probability from which a voxel counts, or auto.",
        auto=True,
        min=0,
        max=1,
        shown_default="auto: the model's own",
    ),
]


def structure_names(text: str | None) -> tuple[str, ...]:
    """Split ``GTV*, Met 1`` into its names. Raises ConfigError when it holds none."""
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not names:
        raise ConfigError("--structures has no name", remedy="write names, as in --structures 'GTV*,Met 1'")
    return names


def named_regions(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Parse ``TC=1,3`` as {"TC": (1, 3)}."""
    named = [text.partition("=") for text in texts]
    return {name.strip(): label_values(values, f"--region {name}{sign}{values}") for name, sign, values in named}


def label_values(text: str, option: str) -> tuple[int, ...]:
    """Parse ``1,3`` as (1, 3). Raises ConfigError naming *option*."""
    try:
        values = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(f"{option} does not list label values", remedy="write them as in --region TC=1,3") from None
    if not all(1 <= value <= 255 for value in values):
        raise ConfigError(f"{option}: label values lie between 1 and 255")
    return values
