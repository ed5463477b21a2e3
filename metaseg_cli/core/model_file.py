"""The model file: weights as safetensors, and in its metadata all that prediction needs. No code is ever loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import metaseg_cli
from metaseg_cli.core.models import build_model
from metaseg_cli.core.models.attention_unet import AttentionUNet
from metaseg_cli.core.models.nested_unet import NestedUNet
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.whole_file import write_whole
from metaseg_cli.errors import ConfigError, ModelFileError, first_line

FORMAT = 5
DEPTH_MARGIN = 0.01
_KEY = "metaseg"


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """How good a nested-unet is on its validation cases when it is cut shallower, and what to make of its logits."""

    score: float  # mean of Dice and lesion F1
    temperature: float
    postprocessing: dict[str, Postprocessing]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is and how it wants to be used."""

    name: str
    in_channels: int  # one per sequence (and per neighbour slice of it), and with presence one more per sequence
    out_channels: int
    dims: int
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    norm: str
    activation: str
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    preprocessing: dict[str, Any]  # a core.preprocessing.Preprocessing, as JSON has it
    patch: tuple[int, int, int]
    file_channels: tuple[str, ...] = ()  # in which order a file of several channels holds the sequences
    context: int = 0  # neighbour slices on each side that a 2D network sees
    presence: bool = False  # the network is told which sequences are there, and was trained without some
    deep_supervision: bool = True
    foreground_prior: float = 0.01
    members: int = 1  # networks whose logits are averaged
    temperature: float = 1.0  # logits are divided by it, for calibrated probabilities …
    postprocessing: dict[str, Postprocessing] = field(default_factory=dict)  # … of each region; none: the defaults
    depths: dict[int, Pruned] = field(default_factory=dict)  # where it was measured: those below the full one
    validation: dict[str, float] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()  # content hashes of the training cases …
    validated_on: tuple[str, ...] = ()  # … and of those that chose epoch and threshold
    patients: tuple[str, ...] = ()  # hashes of the training patients: ids have no place in a file that is passed on
    dataset_id: str = ""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    program: str = f"metaseg {metaseg_cli.__version__}"

    def of_regions(self) -> tuple[Postprocessing, ...]:
        """The post-processing of each region, in their order."""
        return tuple(self.postprocessing.get(name, Postprocessing()) for name in self.regions)

    def at_depth(self, wanted: str) -> tuple[int | None, ModelCard]:
        """The depth that *wanted* ("full", "auto" or a number) means, None for the full one, and the card for it.

        "auto" is the shallowest one that scores at most ``DEPTH_MARGIN`` less on the validation cases. Raises
        ConfigError.
        """
        full = len(self.widths) - 1
        if wanted == "auto":
            whole = (self.validation.get("dice", 0.0) + self.validation.get("lesion_f1", 0.0)) / 2
            good = [depth for depth, each in sorted(self.depths.items()) if each.score >= whole - DEPTH_MARGIN]
            depth = good[0] if good else full
        elif wanted == "full":
            depth = full
        elif self.name != "nested-unet":
            raise ConfigError(f"{self.name} has one depth only", remedy="leave out --depth")
        elif not wanted.isdecimal() or not 1 <= int(wanted) <= full:
            raise ConfigError(f"there is no depth {wanted}", remedy=f"take 1 to {full}, auto or full")
        else:
            depth = int(wanted)
        if depth == full:
            return None, self
        known = self.depths.get(depth)
        if known is None:
            return depth, self
        return depth, dataclasses.replace(self, temperature=known.temperature, postprocessing=known.postprocessing)

    def build(self) -> AttentionUNet | NestedUNet:
        """The network with fresh weights."""
        return build_model(
            self.name,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            dims=self.dims,
            widths=self.widths,
            strides=self.strides,
            norm=self.norm,
            activation=self.activation,
            deep_supervision=self.deep_supervision,
            foreground_prior=self.foreground_prior,
        )


class Ensemble(nn.Module):
    """Several networks of one kind; the mean of their logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, …)`` → logits ``(B, regions, …)``; for prediction only."""
        logits: Tensor = self.members[0](x)
        for member in self.members[1:]:
            logits = logits + member(x)
        return logits / len(self.members)


def patient_hash(dataset_id: str, patient: str) -> str:
    """Recognises a patient of one data set without naming them."""
    return hashlib.sha256(f"{dataset_id}/{patient}".encode()).hexdigest()[:16]


def save_model(path: Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights and *card*; the file appears whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {_KEY: json.dumps({"format": FORMAT, **dataclasses.asdict(card)})}
    write_whole(path, lambda to: save_file(weights, str(to), metadata=metadata))


def read_card(path: Path) -> ModelCard:
    """The description alone, without the weights. Raises ModelFileError when it is not a metaseg model file."""
    if path.is_dir():
        raise ModelFileError("a folder, not a model file", where=path, remedy="name the model.safetensors in it")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except FileNotFoundError:
        raise ModelFileError(
            "no such model file", where=path, remedy="train one, or name another with --model"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"not a model file ({error})", where=path, remedy="take the model.safetensors of a finished run"
        ) from error
    if text is None:
        raise ModelFileError(
            "a safetensors file, but not written by metaseg", where=path, remedy="take the model.safetensors of a run"
        )
    try:
        values = json.loads(text)
        version = values.pop("format", None)
        if version != FORMAT:
            raise ModelFileError(
                f"format version {version}, this program reads {FORMAT}",
                where=path,
                remedy="use the program that wrote it",
            )
        known = {f.name for f in dataclasses.fields(ModelCard)}
        for name in ("widths", "sequences", "file_channels", "patch", "trained_on", "validated_on", "patients"):
            values[name] = tuple(values[name]) if values.get(name) is not None else None
        values["strides"] = tuple(tuple(s) for s in values["strides"])
        values["regions"] = {name: tuple(v) for name, v in values["regions"].items()}
        values["postprocessing"] = _settings(values["postprocessing"])
        values["depths"] = {
            int(depth): Pruned(**{**v, "postprocessing": _settings(v["postprocessing"])})
            for depth, v in values["depths"].items()
        }
        return ModelCard(**{k: v for k, v in values.items() if k in known})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"its description is damaged ({error})", where=path, remedy="train again") from error


def _settings(values: dict[str, dict[str, Any]]) -> dict[str, Postprocessing]:
    return {name: Postprocessing(**each) for name, each in values.items()}


def load_model_file(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, ModelCard]:
    """Network in eval mode with its weights, and its card. Raises ModelFileError."""
    card = read_card(path)
    try:
        members = [card.build() for _ in range(card.members)]
        model: nn.Module = members[0] if card.members == 1 else Ensemble(members)
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError, ConfigError) as error:
        raise ModelFileError(
            f"its weights do not fit ({first_line(error)})", where=path, remedy="train again"
        ) from error
    return model.to(device).eval(), card
