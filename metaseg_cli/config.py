"""Every setting of every command, written once: type, meaning, default, limits.

``options.py`` makes command-line options of them, ``config_file.py`` YAML keys, a run records them, and the
reference page lists them.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field's type cannot say: its meaning, limits, choices, and how it stands on the command line."""

    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    positional: bool = False
    option: str | None = None  # another name on the command line; for a positional, an option that means the same
    panel: str | None = None
    shown_default: str | None = None
    auto: bool = False  # a number, or the word auto for None
    several: bool = False  # a text that may be typed as several numbers: --spacing 6.5 0.8 0.8


def settings_of(config: type) -> dict[str, tuple[Any, Setting, Any]]:
    """Field name → (type, Setting, default) of a config dataclass."""
    hints = typing.get_type_hints(config, include_extras=True)
    found = {}
    for field in dataclasses.fields(config):
        kind, *extras = typing.get_args(hints[field.name])
        found[field.name] = (kind, next(e for e in extras if isinstance(e, Setting)), field.default)
    return found


def check(config: object) -> None:
    """Hold the limits and choices of every field. Raises ConfigError naming the option."""
    for name, (_, setting, _) in settings_of(type(config)).items():
        value = getattr(config, name)
        option = "--" + (setting.option or name.replace("_", "-"))
        if value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)
        for each in values:
            if setting.least is not None and each < setting.least:
                raise ConfigError(f"{option} must be at least {setting.least:g}, got {each}")
            if setting.most is not None and each > setting.most:
                raise ConfigError(f"{option} must be at most {setting.most:g}, got {each}")
            if setting.choices and each not in setting.choices:
                raise ConfigError(
                    f"{option} {each!r} does not exist", remedy=f"take one of {', '.join(setting.choices)}"
                )


Cluster = Annotated[
    str | None,
    Setting(
        help="Dask cluster that does the work: its scheduler's address (tcp://host:8786) or scheduler file.",
        shown_default="this computer",
    ),
]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Read a folder of images and masks, check it, and cache it for training."""

    raw: Annotated[Path, Setting(help="Folder with images and masks.", positional=True)]
    out: Annotated[Path, Setting(help="Prepared folder to write.")] = Path("prepared")
    layout: Annotated[
        str,
        Setting(
            help="How the folder is laid out; auto finds out.",
            choices=("auto", "nnunet", "decathlon", "bids", "brats", "dicom", "pairs"),
        ),
    ] = "auto"
    manifest: Annotated[
        Path | None,
        Setting(help="Table of the cases (CSV or TSV: case, patient, mask, one column per sequence) instead."),
    ] = None
    write_manifest: Annotated[
        Path | None, Setting(help="Write a table of what was found, to complete by hand, and stop.")
    ] = None
    sequences: Annotated[
        str | None, Setting(help="Sequences to use, such as t1c,t2f.", shown_default="all that are found")
    ] = None
    labels: Annotated[
        str | None,
        Setting(
            help="Label values that make the one region 'metastasis', such as 1,3.",
            shown_default="every non-zero label",
        ),
    ] = None
    region: Annotated[
        tuple[str, ...], Setting(help="A region and its label values, such as ET=3 or TC=1,3; repeatable.")
    ] = ()
    spacing: Annotated[
        str,
        Setting(help="Voxel size of volumes: auto (the median), native (as they are), or Z Y X in mm.", several=True),
    ] = "auto"
    folds: Annotated[int, Setting(help="Folds for validation; a patient is never split.", least=2, most=100)] = 5
    seed: Annotated[int, Setting(help="Seed of the split into folds.", least=0)] = 0
    workers: Annotated[
        int | None, Setting(help="Processes that read cases.", least=1, shown_default="one per processor")
    ] = None
    cluster: Cluster = None
    strict: Annotated[bool, Setting(help="Fail when any file has a problem or is doubtful.")] = False
    dry_run: Annotated[bool, Setting(help="Only show what would be read, and why.")] = False

    def __post_init__(self) -> None:
        check(self)
        self.regions()
        self.spacing_mm()
        if self.manifest is not None and self.layout != "auto":
            raise ConfigError("--manifest and --layout exclude each other", remedy="leave one out")

    def spacing_mm(self) -> tuple[float, float, float] | None:
        """The voxel size (z, y, x) that was asked for; None for auto and native."""
        if self.spacing in ("auto", "native"):
            return None
        try:
            sizes = [float(part) for part in re.split(r"[,\sx×]+", self.spacing.strip())]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 3) or not all(0.05 <= size <= 50 for size in sizes):
            raise ConfigError(
                f"--spacing {self.spacing!r} is no voxel size",
                remedy="take auto, native, or three numbers in mm, as in --spacing 1 1 1",
            )
        z, y, x = sizes * 3 if len(sizes) == 1 else sizes
        return (z, y, x)

    def chosen_sequences(self) -> tuple[str, ...]:
        """The names given with ``--sequences``; empty for all."""
        return tuple(part.strip() for part in (self.sequences or "").split(",") if part.strip())

    def regions(self) -> dict[str, tuple[int, ...]]:
        """Region name → label values; an empty tuple means every non-zero label."""
        if self.labels and self.region:
            raise ConfigError("--labels and --region exclude each other", remedy="name the regions with --region alone")
        if self.region:
            return _named_regions(self.region)
        return {"metastasis": _label_values(self.labels, f"--labels {self.labels}") if self.labels else ()}


def _named_regions(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``TC=1,3`` → {"TC": (1, 3)}."""
    named = [text.partition("=") for text in texts]
    return {name.strip(): _label_values(values, f"--region {name}{sign}{values}") for name, sign, values in named}


def _label_values(text: str, option: str) -> tuple[int, ...]:
    try:
        values = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(f"{option} does not list label values", remedy="write them as in --region TC=1,3") from None
    if not all(1 <= value <= 255 for value in values):
        raise ConfigError(f"{option}: label values lie between 1 and 255")
    return values


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network on a prepared folder."""

    data: Annotated[Path, Setting(help="Prepared folder.")] = Path("prepared")
    model: Annotated[str, Setting(help="Network: attention-unet or nested-unet.")] = "attention-unet"
    epochs: Annotated[int, Setting(help="Passes over the training cases.", least=1)] = 50
    fold: Annotated[
        str, Setting(help="Fold that validates, the others train; or all: a model for each fold, then their ensemble.")
    ] = "0"
    out: Annotated[Path, Setting(help="Folder that receives the run's folder.")] = Path("runs")
    max_minutes: Annotated[
        float | None,
        Setting(
            help="Stop after this time; the learning rate follows the clock.", least=0.05, shown_default="no limit"
        ),
    ] = None
    patience: Annotated[
        int | None, Setting(help="Stop after this many epochs without a better score.", least=1, shown_default="never")
    ] = None
    resume: Annotated[Path | None, Setting(help="Run folder to go on with; its own settings hold.")] = None
    init: Annotated[
        Path | None,
        Setting(help="Model file or run whose weights to start from, sequences and regions matched by name."),
    ] = None
    plan_only: Annotated[bool, Setting(help="Show what would be trained, and why, and stop.")] = False
    tensorboard: Annotated[bool, Setting(help="Write TensorBoard events into the run (wants tensorboard).")] = False
    seed: Annotated[int, Setting(help="Seed of all randomness.", least=0)] = 0
    device: Annotated[str, Setting(help="Where the network runs: auto, cpu, cuda, cuda:1, mps.", panel="Machine")] = (
        "auto"
    )
    precision: Annotated[
        str,
        Setting(
            help="Number format of the convolutions; auto measures what is faster here.",
            choices=("auto", "fp32", "bf16", "fp16"),
            panel="Machine",
        ),
    ] = "auto"
    layout: Annotated[
        str,
        Setting(
            help="Memory layout of the convolutions; auto measures what is faster here.",
            choices=("auto", "channels-last", "contiguous"),
            panel="Machine",
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        Setting(help="Compile the network first: a minute that pays on a GPU and in long runs.", panel="Machine"),
    ] = False
    accumulate: Annotated[
        int,
        Setting(help="Pieces in which a batch goes through the network, to save memory.", least=1, panel="Machine"),
    ] = 1

    dims: Annotated[
        str,
        Setting(help="Dimensions: 2 for slices, 3 for volumes.", choices=("auto", "2", "3"), panel="Network and plan"),
    ] = "auto"
    context: Annotated[
        int | None,
        Setting(
            help="Neighbour slices on each side that a 2D network sees too.",
            least=0,
            most=8,
            panel="Network and plan",
            shown_default="from the data",
        ),
    ] = None
    patch: Annotated[
        tuple[int, ...],
        Setting(
            help="Patch size: one number, or one per axis.",
            least=8,
            panel="Network and plan",
            shown_default="from the data",
        ),
    ] = ()
    batch_size: Annotated[
        int | None, Setting(help="Patches per step.", least=1, panel="Network and plan", shown_default="from the patch")
    ] = None
    steps_per_epoch: Annotated[
        int | None, Setting(help="Steps per epoch.", least=1, panel="Network and plan", shown_default="from the data")
    ] = None
    widths: Annotated[
        tuple[int, ...],
        Setting(
            help="Channels per level, finest first.",
            least=1,
            panel="Network and plan",
            shown_default="32,64,128,256,512",
        ),
    ] = ()
    foreground_prior: Annotated[
        float | None,
        Setting(
            help="Probability of a lesion that the untrained network answers everywhere.",
            least=1e-6,
            most=0.9,
            panel="Network and plan",
            shown_default="from the data",
        ),
    ] = None
    norm: Annotated[
        str, Setting(help="Normalisation.", choices=("batch", "instance", "group", "none"), panel="Network and plan")
    ] = "batch"
    activation: Annotated[
        str, Setting(help="Activation.", choices=("relu", "leaky-relu"), panel="Network and plan")
    ] = "leaky-relu"
    deep_supervision: Annotated[
        bool, Setting(help="A loss on every head, not only the last.", panel="Network and plan")
    ] = True

    loss: Annotated[
        str,
        Setting(
            help="What is minimised.",
            choices=("focal", "dice-focal", "dice-ce", "tversky-focal", "component-focal"),
            panel="Optimisation",
        ),
    ] = "dice-focal"
    focal_gamma: Annotated[
        float, Setting(help="Focal exponent; 0 is cross-entropy.", least=0, most=10, panel="Optimisation")
    ] = 2.0
    focal_alpha: Annotated[
        float | None,
        Setting(
            help="Weight of the foreground in the focal loss, 0 to 1.",
            least=0,
            most=1,
            panel="Optimisation",
            shown_default="none",
        ),
    ] = None
    optimizer: Annotated[str, Setting(help="Optimiser.", choices=("adamw", "sgd"), panel="Optimisation")] = "adamw"
    learning_rate: Annotated[
        float | None,
        Setting(
            help="Base learning rate.",
            least=1e-7,
            most=10,
            panel="Optimisation",
            shown_default="0.001 for adamw, 0.01 for sgd",
        ),
    ] = None
    weight_decay: Annotated[float, Setting(help="Weight decay.", least=0, panel="Optimisation")] = 1e-2
    schedule: Annotated[
        str, Setting(help="Decay of the learning rate.", choices=("poly", "cosine", "constant"), panel="Optimisation")
    ] = "poly"
    warmup_steps: Annotated[int, Setting(help="Steps of linear warm-up.", least=0, panel="Optimisation")] = 50
    clip: Annotated[float, Setting(help="Largest gradient norm; 0 does not clip.", least=0, panel="Optimisation")] = (
        12.0
    )
    ema: Annotated[
        float,
        Setting(
            help="Decay of the averaged weights; 0 uses the last ones.", least=0, most=0.99999, panel="Optimisation"
        ),
    ] = 0.99
    lesion_share: Annotated[
        float, Setting(help="Share of patches around a lesion.", least=0, most=1, panel="Optimisation")
    ] = 0.5
    hard_share: Annotated[
        float,
        Setting(
            help="Share of patches around false lesions seen on training cases after the last epoch.",
            least=0,
            most=1,
            panel="Optimisation",
        ),
    ] = 0.1
    paste: Annotated[
        float,
        Setting(
            help="Chance of a patch without lesion to get the lesions of another patch.",
            least=0,
            most=1,
            panel="Optimisation",
        ),
    ] = 0.1
    drop_sequence: Annotated[
        float,
        Setting(
            help="Chance of each sequence to be taken away in training, where there are several; never all.",
            least=0,
            most=0.9,
            panel="Optimisation",
        ),
    ] = 0.15
    augment: Annotated[
        bool,
        Setting(
            help="Change patches at random: rotation, scaling, flips, intensity, noise, blur.", panel="Optimisation"
        ),
    ] = True

    def __post_init__(self) -> None:
        check(self)
        if str(self.fold) != "all" and not str(self.fold).isdecimal():
            raise ConfigError(f"--fold {self.fold!r} is neither a number nor all", remedy="take 0, 1, … or all")
        if self.lesion_share + self.hard_share > 1:
            raise ConfigError("--lesion-share and --hard-share add up to more than 1", remedy="lower one of them")


# Settings that several commands share.
Device = Annotated[str, Setting(help="Where the network runs: auto, cpu, cuda, cuda:1, mps.")]
Threshold = Annotated[
    float | None,
    Setting(
        help="Probability from which a voxel counts, or auto.",
        auto=True,
        least=0,
        most=1,
        shown_default="auto: the model's own",
    ),
]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score models on prepared cases that they have not seen, or folders of masks against another; compare several."""

    models: Annotated[
        tuple[str, ...],
        Setting(
            help="Runs or model files; several are compared. With --references: folders of masks.",
            positional=True,
            option="model",
            shown_default="the newest finished run",
        ),
    ] = ()
    data: Annotated[Path, Setting(help="Prepared folder.")] = Path("prepared")
    split: Annotated[
        str,
        Setting(
            help="Which cases: the validation fold, those of a test folder, or every one not trained on.",
            choices=("validation", "test", "all"),
        ),
    ] = "validation"
    predictions: Annotated[Path | None, Setting(help="Folder of predicted masks, from any tool.")] = None
    references: Annotated[Path | None, Setting(help="Folder of reference masks.")] = None
    region: Annotated[
        tuple[str, ...],
        Setting(
            help="A region of the masks and its label values, such as ET=3 or TC=1,3; repeatable.",
            shown_default="every label together, or the challenge's regions",
        ),
    ] = ()
    out: Annotated[
        Path | None, Setting(help="Folder for the results.", shown_default="evaluation inside the run, or ./evaluation")
    ] = None
    threshold: Threshold = None
    protocol: Annotated[
        str,
        Setting(
            help="By which rules lesions are scored.",
            choices=("default", "brats-mets-2023", "brats-mets-2026"),
            panel="Lesions",
        ),
    ] = "default"
    tolerance: Annotated[
        tuple[float, ...],
        Setting(
            help="Distances at which surfaces count as equal, in mm (or pixels), such as 1,2.", least=0, panel="Lesions"
        ),
    ] = (1.0, 2.0)
    connectivity: Annotated[
        int | None,
        Setting(
            help="Neighbours that join voxels to a lesion: 6, 18 or 26.",
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    dilation: Annotated[
        int | None,
        Setting(
            help="Voxels by which reference lesions are widened to join and to match.",
            least=0,
            most=20,
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    smallest_lesion: Annotated[
        float | None,
        Setting(
            help="Reference lesions of up to so many mm³ (or pixels) do not count.",
            least=0,
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    matching: Annotated[
        str | None,
        Setting(
            help="Lesions match by any overlap, or one to one.",
            choices=("overlap", "one-to-one"),
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    penalty: Annotated[
        float | None,
        Setting(
            help="Distance that stands for that of a missed or false lesion, in mm (or pixels).",
            least=0,
            panel="Lesions",
            shown_default="the protocol's, or the image's diagonal",
        ),
    ] = None
    device: Device = "auto"
    workers: Annotated[
        int | None, Setting(help="Processes that score two folders.", least=1, shown_default="one per processor")
    ] = None
    cluster: Cluster = None

    def __post_init__(self) -> None:
        check(self)
        self.regions()
        if self.predictions is not None and self.references is None:
            raise ConfigError("--predictions and --references come together", remedy="name both folders")
        if self.references is not None and (self.predictions is None) == (not self.models):
            raise ConfigError(
                "--references wants the folders to score", remedy="name one with --predictions, or several without it"
            )

    def regions(self) -> dict[str, tuple[int, ...]]:
        """Region name → label values; empty when none are named."""
        return _named_regions(self.region)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Segment scans: pictures, volumes, or folders of them."""

    inputs: Annotated[
        tuple[str, ...],
        Setting(
            help="Scans, folders of scans, DICOM folders or ZIPs; or the sequences of one case, as in t1c=a.nii.gz.",
            positional=True,
            option="input",
        ),
    ] = ()
    model: Annotated[
        str | None, Setting(help="Model file, run folder, or architecture.", shown_default="the newest finished run")
    ] = None
    out: Annotated[Path, Setting(help="Folder for the results.")] = Path("predictions")
    threshold: Threshold = None
    tta: Annotated[bool, Setting(help="Look at every mirror image too: steadier, 4 (2D) or 8 (3D) times as long.")] = (
        False
    )
    fusion: Annotated[
        str,
        Setting(
            help="One answer of several networks or mirror images; max keeps a lesion that only one of them sees.",
            choices=("mean", "max", "vote"),
        ),
    ] = "mean"
    probabilities: Annotated[bool, Setting(help="Write the calibrated probabilities too.")] = False
    uncertainty: Annotated[
        bool,
        Setting(help="Write how unsure each voxel is: entropy, and how far mirror images or networks disagree."),
    ] = False
    format: Annotated[
        str,
        Setting(
            help="Format of the masks; auto: the scan's own, for DICOM both NIfTI and, with highdicom, SEG.",
            choices=("auto", "nifti", "nrrd", "mha", "png", "dicom-seg", "rtstruct"),
        ),
    ] = "auto"
    per_lesion: Annotated[
        bool, Setting(help="In a DICOM SEG or RTSTRUCT, make every lesion a structure of its own.")
    ] = False
    postprocess: Annotated[
        bool, Setting(help="Apply the model's threshold and filters; without: 0.5 and no filter.")
    ] = True
    fill_holes: Annotated[bool, Setting(help="Fill what a lesion encloses, such as a dark core.")] = False
    overlay: Annotated[bool, Setting(help="Write a picture of the outlined lesions.")] = True
    overwrite: Annotated[bool, Setting(help="Replace results that exist.")] = False
    depth: Annotated[
        str,
        Setting(
            help="Where to cut a nested-unet: 1 (fastest), 2, …, full; auto: the shallowest one that is nearly as good."
        ),
    ] = "full"
    max_memory: Annotated[
        str | None, Setting(help="Memory that the program may take, such as 2GB.", shown_default="half of what is free")
    ] = None
    backend: Annotated[
        str,
        Setting(
            help="What runs the network on a processor; auto: the fastest that is installed and agrees with torch.",
            choices=("auto", "torch", "onnx", "openvino"),
        ),
    ] = "auto"
    device: Device = "auto"
    cluster: Cluster = None

    def __post_init__(self) -> None:
        check(self)
        self.max_bytes()
        if not self.inputs:
            raise ConfigError("nothing to predict", remedy="name a scan or a folder, as in metaseg predict scan.png")

    def max_bytes(self) -> int | None:
        """What --max-memory says, in bytes."""
        if self.max_memory is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", self.max_memory.strip(), re.IGNORECASE)
        if found is None:
            raise ConfigError(f"--max-memory {self.max_memory!r} is no size", remedy="write it as 2GB or 1500MB")
        number, prefix, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


@dataclass(frozen=True, kw_only=True)
class FollowUpConfig:
    """Lesions over the visits of one patient."""

    visits: Annotated[
        tuple[str, ...],
        Setting(
            help="A mask or a scan of each visit, the earliest first; scans are segmented.",
            positional=True,
            option="visit",
        ),
    ] = ()
    model: Annotated[
        str | None, Setting(help="Model file, run folder, or architecture.", shown_default="the newest finished run")
    ] = None
    out: Annotated[Path, Setting(help="Folder for the results.")] = Path("follow_up")
    match_distance: Annotated[
        float,
        Setting(help="Lesions of two visits that do not overlap are the same within this distance (mm).", least=0),
    ] = 3.0
    overwrite: Annotated[bool, Setting(help="Replace results that exist.")] = False
    device: Device = "auto"

    def __post_init__(self) -> None:
        check(self)
        if len(self.visits) < 2:
            raise ConfigError(
                "a follow-up needs two visits or more",
                remedy="name their masks or scans in order, as in metaseg follow-up 2024.nii.gz 2025.nii.gz",
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A trained model for programs without torch."""

    model: Annotated[
        str | None,
        Setting(
            help="Model file, run folder, or architecture.",
            positional=True,
            option="model",
            shown_default="the newest finished run",
        ),
    ] = None
    format: Annotated[str, Setting(help="Format of the file.", choices=("onnx",))] = "onnx"
    out: Annotated[Path | None, Setting(help="File to write.", shown_default="beside the model")] = None
    check: Annotated[
        Path | None, Setting(help="Scan on which the file is compared with torch.", shown_default="a phantom")
    ] = None
    overwrite: Annotated[bool, Setting(help="Replace a file that exists.")] = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ServeUiConfig:
    """Open the app in a browser."""

    model: Annotated[
        str | None,
        Setting(help="Model file, run folder, or architecture to start with.", shown_default="chosen in the app"),
    ] = None
    runs: Annotated[Path, Setting(help="Folder whose runs the app offers.")] = Path("runs")
    host: Annotated[str, Setting(help="Address to listen on; 127.0.0.1 keeps it on this computer.")] = "127.0.0.1"
    port: Annotated[int, Setting(help="Port to listen on.", least=1, most=65535)] = 8501

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make phantom brains with metastases and run prepare, train, evaluate and predict on them."""

    out: Annotated[Path, Setting(help="Folder for everything the demo makes.")] = Path("demo")
    model: Annotated[str, Setting(help="Network: attention-unet or nested-unet.")] = "attention-unet"
    minutes: Annotated[float, Setting(help="Time for the training.", least=0.05)] = 1.5
    seed: Annotated[int, Setting(help="Seed of phantoms and training.", least=0)] = 0

    def __post_init__(self) -> None:
        check(self)
