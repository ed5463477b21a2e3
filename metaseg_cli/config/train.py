"""Settings of ``metaseg train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.core.choices import (
    ACTIVATIONS,
    DEFAULT_NETWORK,
    DEFAULT_OPERATING_POINT,
    DEFAULT_WIDTHS,
    LOSSES,
    MEMORY_FORMATS,
    NETWORKS,
    NORMS,
    OPERATING_POINTS,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
)
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network on a prepared folder."""

    when_interrupted: ClassVar[str] = "no step was lost"

    data: Annotated[Path, Setting(help="Prepared folder.")] = Path("prepared")
    model: Annotated[str, Setting(help=f"Network: {' or '.join(NETWORKS)}.")] = DEFAULT_NETWORK
    epochs: Annotated[int, Setting(help="Passes over the training cases.", min=1)] = 50
    fold: Annotated[
        str, Setting(help="Fold to validate on, the others train; or all: one model per fold, then their ensemble.")
    ] = "0"
    out: Annotated[Path, Setting(help="Folder that receives the run's folder.")] = Path("runs")
    max_minutes: Annotated[
        float | None,
        Setting(
            help="End after this time, validation and all folds included; the learning rate follows the clock.",
            min=0.05,
            shown_default="no limit",
        ),
    ] = None
    patience: Annotated[
        int | None, Setting(help="Stop after this many epochs without a better score.", min=1, shown_default="never")
    ] = None
    resume: Annotated[Path | None, Setting(help="Run folder to resume; its own settings apply.")] = None
    init: Annotated[
        Path | None,
        Setting(help="Model file or run whose weights to start from, sequences and regions matched by name."),
    ] = None
    plan_only: Annotated[bool, Setting(help="Show what would be trained, and why, and stop.")] = False
    tensorboard: Annotated[bool, Setting(help="Write TensorBoard events into the run (requires tensorboard).")] = False
    seed: Annotated[int, Setting(help="Seed of all randomness.", min=0)] = 0
    device: Annotated[str, Setting(help="Where the network runs: auto, cpu, cuda, cuda:1, mps.", panel="Machine")] = (
        "auto"
    )
    precision: Annotated[
        str,
        Setting(
            help="Number format of the convolutions; auto measures what is faster here.",
            choices=PRECISIONS,
            panel="Machine",
        ),
    ] = "auto"
    memory_format: Annotated[
        str,
        Setting(
            help="Memory format of the convolutions; auto measures what is faster here.",
            choices=MEMORY_FORMATS,
            former_name="layout",
            panel="Machine",
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        Setting(
            help="Compile the network first; takes a minute and pays off on a GPU and in long runs.", panel="Machine"
        ),
    ] = False
    accumulate: Annotated[
        int,
        Setting(help="Micro-batches per step (gradient accumulation), to save memory.", min=1, panel="Machine"),
    ] = 1

    dims: Annotated[
        str,
        Setting(help="Dimensions: 2 for slices, 3 for volumes.", choices=("auto", "2", "3"), panel="Network and plan"),
    ] = "auto"
    context: Annotated[
        int | None,
        Setting(
            help="Adjacent slices on each side that a 2D network sees too (2.5D).",
            min=0,
            max=8,
            panel="Network and plan",
            shown_default="from the data",
        ),
    ] = None
    patch: Annotated[
        tuple[int, ...],
        Setting(
            help="Patch size: one number, or one per axis.",
            min=8,
            panel="Network and plan",
            shown_default="from the data",
        ),
    ] = ()
    batch_size: Annotated[
        int | None, Setting(help="Patches per step.", min=1, panel="Network and plan", shown_default="from the patch")
    ] = None
    steps_per_epoch: Annotated[
        int | None, Setting(help="Steps per epoch.", min=1, panel="Network and plan", shown_default="from the data")
    ] = None
    widths: Annotated[
        tuple[int, ...],
        Setting(
            help="Channels per level, finest first.",
            min=1,
            panel="Network and plan",
            shown_default=",".join(map(str, DEFAULT_WIDTHS)),
        ),
    ] = ()
    foreground_prior: Annotated[
        float | None,
        Setting(
            help="Foreground probability that the untrained network predicts everywhere.",
            min=1e-6,
            max=0.9,
            panel="Network and plan",
            shown_default="from the data",
        ),
    ] = None
    # Measured: docs/decisions/batch-norm.md.
    norm: Annotated[str, Setting(help="Normalisation.", choices=tuple(NORMS), panel="Network and plan")] = "batch"
    activation: Annotated[str, Setting(help="Activation.", choices=tuple(ACTIVATIONS), panel="Network and plan")] = (
        "leaky-relu"
    )
    deep_supervision: Annotated[
        bool, Setting(help="Deep supervision: a loss on every head, not only the last.", panel="Network and plan")
    ] = True

    operating_point: Annotated[
        str,
        Setting(
            help="Operating point that is stored as the model's default: sensitive (most lesions at no more than one "
            "false one per case), balanced (best lesion F1) or specific (at most 0.1 false ones per case).",
            choices=tuple(OPERATING_POINTS),
        ),
    ] = DEFAULT_OPERATING_POINT
    # Measured: docs/decisions/dice-focal-loss.md; gamma 2 is that of Lin et al. 2017.
    loss: Annotated[str, Setting(help="Loss function.", choices=tuple(LOSSES), panel="Optimisation")] = "dice-focal"
    focal_gamma: Annotated[
        float, Setting(help="Focal exponent; 0 is cross-entropy.", min=0, max=10, panel="Optimisation")
    ] = 2.0
    focal_alpha: Annotated[
        float | None,
        Setting(
            help="Weight of the foreground in the focal loss (alpha), 0 to 1.",
            min=0,
            max=1,
            panel="Optimisation",
            shown_default="none",
        ),
    ] = None
    optimizer: Annotated[str, Setting(help="Optimiser.", choices=tuple(OPTIMIZERS), panel="Optimisation")] = "adamw"
    learning_rate: Annotated[
        float | None,
        Setting(
            help="Base learning rate.",
            min=1e-7,
            max=10,
            panel="Optimisation",
            shown_default=", ".join(f"{each.learning_rate:g} for {name}" for name, each in OPTIMIZERS.items()),
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        Setting(
            help="Weight decay.",
            min=0,
            panel="Optimisation",
            shown_default=", ".join(f"{each.weight_decay:g} for {name}" for name, each in OPTIMIZERS.items()),
        ),
    ] = None
    schedule: Annotated[str, Setting(help="Decay of the learning rate.", choices=SCHEDULES, panel="Optimisation")] = (
        "poly"
    )
    warmup_steps: Annotated[int, Setting(help="Steps of linear warm-up.", min=0, panel="Optimisation")] = 50
    # nnU-Net (Isensee et al. 2021).
    clip: Annotated[float, Setting(help="Maximum gradient norm; 0 does not clip.", min=0, panel="Optimisation")] = 12.0
    # About the last 100 steps: short enough for runs of minutes. Chosen, like the fractions below, and not measured.
    ema: Annotated[
        float,
        Setting(
            help="Decay of the exponential moving average of the weights (EMA); 0 uses the last weights.",
            min=0,
            max=0.99999,
            panel="Optimisation",
        ),
    ] = 0.99
    lesion_share: Annotated[
        float,
        Setting(
            help="Foreground oversampling: fraction of patches around a lesion.", min=0, max=1, panel="Optimisation"
        ),
    ] = 0.5
    hard_share: Annotated[
        float,
        Setting(
            help="Hard-negative fraction: patches around false-positive lesions on training cases.",
            min=0,
            max=1,
            panel="Optimisation",
        ),
    ] = 0.1
    paste: Annotated[
        float,
        Setting(
            help="Probability that a patch without lesions gets those of another patch (copy-paste).",
            min=0,
            max=1,
            panel="Optimisation",
        ),
    ] = 0.1
    drop_sequence: Annotated[
        float,
        Setting(
            help="Modality dropout: probability that a sequence is left out of a patch; one always stays.",
            min=0,
            max=0.9,
            panel="Optimisation",
        ),
    ] = 0.15
    augment: Annotated[
        bool,
        Setting(
            help="Random augmentation: rotation, scaling, flips, elastic deformation, intensity, noise, blur.",
            panel="Optimisation",
        ),
    ] = True

    def __post_init__(self) -> None:
        check(self)
        if str(self.fold) != "all" and not str(self.fold).isdecimal():
            raise ConfigError(f"--fold {self.fold!r} is neither a number nor all", remedy="take 0, 1, … or all")
        if self.lesion_share + self.hard_share > 1:
            raise ConfigError("--lesion-share and --hard-share add up to more than 1", remedy="lower one of them")
