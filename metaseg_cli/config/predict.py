"""Settings of ``metaseg predict``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.config.shared import Cluster, Device, Model, OperatingPoint, Strict, Threshold
from metaseg_cli.core.choices import BACKENDS, FUSIONS, MASK_FORMATS, NETWORKS
from metaseg_cli.errors import ConfigError

_PRUNABLE = [name for name, network in NETWORKS.items() if network.prunable]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Segment scans: pictures, volumes, or folders of them."""

    when_interrupted: ClassVar[str] = "the scans that are finished are kept"

    inputs: Annotated[
        tuple[str, ...],
        Setting(
            help="Scans, folders of scans, DICOM folders or ZIPs; or the sequences of one case, as in t1c=a.nii.gz.",
            positional=True,
            cli_name="input",
        ),
    ] = ()
    model: Model = None
    out: Annotated[Path, Setting(help="Folder for the results.")] = Path("predictions")
    threshold: Threshold = None
    tta: Annotated[
        bool,
        Setting(help="Test-time augmentation with mirror images: takes 4 (2D) or 8 (3D) times as long."),
    ] = False
    fusion: Annotated[
        str,
        Setting(
            help="How several networks or mirror images make one prediction; max keeps a lesion that only one finds.",
            choices=FUSIONS,
        ),
    ] = "mean"
    probabilities: Annotated[bool, Setting(help="Write the calibrated probabilities too.")] = False
    uncertainty: Annotated[
        bool,
        Setting(help="Write the uncertainty per voxel: entropy, and the disagreement of mirror images or networks."),
    ] = False
    format: Annotated[
        str,
        Setting(
            help="Format of the masks; auto: the scan's own, for DICOM both NIfTI and SEG.",
            choices=("auto", *MASK_FORMATS),
        ),
    ] = "auto"
    region: Annotated[
        str | None,
        Setting(
            help="Region whose lesions are counted and numbered, such as ET.",
            shown_default="the model's: metastasis or enhancing tumour",
        ),
    ] = None
    per_lesion: Annotated[bool, Setting(help="In a DICOM SEG or RTSTRUCT, make every lesion a separate structure.")] = (
        False
    )
    operating_point: OperatingPoint = None
    postprocess: Annotated[
        bool, Setting(help="Apply the model's threshold and filters; without: 0.5 and no filter.")
    ] = True
    fill_holes: Annotated[bool, Setting(help="Fill what a lesion encloses, such as a dark core.")] = False
    overlay: Annotated[bool, Setting(help="Write a picture of the outlined lesions.")] = True
    strict: Strict = False
    overwrite: Annotated[bool, Setting(help="Replace results that exist.")] = False
    depth: Annotated[
        str,
        Setting(
            help=f"Depth to which a {' or '.join(_PRUNABLE)} is pruned: 1 (fastest), 2, …, full; auto: the shallowest "
            "nearly as good."
        ),
    ] = "full"
    max_memory: Annotated[
        str | None, Setting(help="Memory that the program may use, such as 2GB.", shown_default="half of the machine's")
    ] = None
    backend: Annotated[
        str,
        Setting(
            help="What runs the network on a CPU; auto: openvino where it is installed and agrees with torch.",
            choices=("auto", *BACKENDS),
        ),
    ] = "auto"
    device: Device = "auto"
    cluster: Cluster = None

    def __post_init__(self) -> None:
        check(self)
        self.max_bytes()
        if not self.inputs:
            raise ConfigError("nothing to predict", remedy="name a scan or a folder, as in metaseg predict scan.png")

    def of_results(self) -> dict[str, object]:
        """Return the settings that results depend on."""
        names = ("threshold", "tta", "fusion", "probabilities", "uncertainty", "format", "per_lesion", "postprocess")
        named = {"region": self.region} if self.region else {}
        every = (*names, "operating_point", "fill_holes", "overlay", "depth", "backend")
        return {name: getattr(self, name) for name in every} | named

    def max_bytes(self) -> int | None:
        """Return what --max-memory says, in bytes."""
        if self.max_memory is None:
            return None
        if re.fullmatch(r"\d+(\.\d+)?", self.max_memory.strip()):
            raise ConfigError(f"--max-memory {self.max_memory} has no unit", remedy=f"write it as {self.max_memory}GB")
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", self.max_memory.strip(), re.IGNORECASE)
        if found is None:
            raise ConfigError(f"--max-memory {self.max_memory!r} is not a size", remedy="write it as 2GB or 1500MB")
        number, prefix, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
