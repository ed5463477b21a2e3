"""The model file: weights as safetensors, and in its metadata all that prediction needs. No code is ever loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metaseg_cli import PROGRAM
from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.choices import DEFAULT_OPERATING_POINT, NETWORKS
from metaseg_cli.core.input_statistics import InputStatistics
from metaseg_cli.core.models import build_model
from metaseg_cli.core.models.network import Network
from metaseg_cli.core.paths import path_exists, why_not_openable
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.regions import index_region
from metaseg_cli.core.results.operating_points import FrocPoint, OperatingPoint
from metaseg_cli.core.typed_json import as_json, build, parsed
from metaseg_cli.errors import ConfigError, InputError, ModelFileError, decoding, printable

FORMAT = 6
_FORMER_FORMAT = 5  # read as well; its smallest lesion was chosen in a way that could delete metastases
DEPTH_MARGIN = 0.01  # a shallower depth may score this much less: below what another seed changes
_KEY, _CARD_DIGEST, _WEIGHTS_DIGEST = "metaseg", "metaseg-card-sha256", "metaseg-weights-sha256"
_AGAIN = "copy it again, or take the model.safetensors of another finished run"


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Score of a prunable network at a shallower depth, on its validation cases, with the post-processing for it."""

    score: float  # as ``detection.selection_score``
    temperature: float
    postprocessing: dict[str, Postprocessing]
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model is and how to use it; its fields are the keys in the file."""

    name: str
    in_channels: int  # one per sequence and adjacent slice of it; with ``presence`` one more per sequence
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
    context: int = 0  # adjacent slices on each side that a 2D network sees
    presence: bool = False  # modality availability is an input, and training left sequences out
    deep_supervision: bool = True
    foreground_prior: float = 0.01
    members: int = 1  # networks whose logits are averaged
    temperature: float = 1.0  # logits are divided by it, for calibrated probabilities …
    postprocessing: dict[str, Postprocessing] = field(default_factory=dict)  # … of each region; none: the defaults
    operating_point: str = DEFAULT_OPERATING_POINT  # whose post-processing that is
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)  # all of them; none in older files
    froc: dict[str, tuple[FrocPoint, ...]] = field(default_factory=dict)  # of each region, on the validation cases
    former_filter: bool = False  # a file of an older version, whose smallest lesion is not applied
    depths: dict[int, Pruned] = field(default_factory=dict)  # below the full one, where they were scored
    validation: dict[str, float] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()  # content hashes of the training cases …
    validated_on: tuple[str, ...] = ()  # … and of those that chose epoch and threshold
    patients: tuple[str, ...] = ()  # keyed hashes of the training patients; the key stays in the prepared folder
    dataset_id: str = ""  # of older files, whose patients are hashed without a key
    fingerprint: dict[str, Any] = field(default_factory=dict)
    inputs: InputStatistics | None = None  # what the training cases looked like; None in older files
    index_region: str = ""  # that lesions are counted in; not given: by the names of the regions
    program: str = PROGRAM

    def __post_init__(self) -> None:
        if not self.index_region and self.regions:
            object.__setattr__(self, "index_region", index_region(self.regions))

    def of_regions(self) -> tuple[Postprocessing, ...]:
        """Return the post-processing of each region, in their order."""
        return tuple(self.postprocessing.get(name, Postprocessing()) for name in self.regions)

    def at_operating_point(self, wanted: str | None) -> ModelCard:
        """Return the card with the post-processing of the operating point *wanted*; None: the file's own.

        Raises ConfigError where the file knows no such operating point.
        """
        if wanted is None or wanted == self.operating_point:
            return self
        if wanted not in self.operating_points:
            raise ConfigError(
                f"the model file knows no operating point {wanted}",
                remedy="leave out --operating-point, or train again: an older version wrote the file",
            )
        chosen = self.operating_points[wanted].postprocessing
        return dataclasses.replace(self, operating_point=wanted, postprocessing=chosen)

    def at_depth(self, wanted: str) -> tuple[int | None, ModelCard]:
        """Return the depth that *wanted* ("full", "auto" or a number) means (None: the full one), and its card.

        "auto" is the shallowest one that scores at most ``DEPTH_MARGIN`` less on the validation cases. Raises
        ConfigError.
        """
        full = len(self.widths) - 1
        if wanted == "auto":
            former = (self.validation.get("dice", 0.0) + self.validation.get("lesion_f1", 0.0)) / 2
            whole = self.validation.get("score", former)
            good = [depth for depth, each in sorted(self.depths.items()) if each.score >= whole - DEPTH_MARGIN]
            depth = good[0] if good else full
        elif wanted == "full":
            depth = full
        elif not NETWORKS[self.name].prunable:
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
        return depth, dataclasses.replace(
            self,
            temperature=known.temperature,
            postprocessing=known.postprocessing,
            operating_points=known.operating_points,
            froc={},
        )

    def build(self) -> Network:
        """Build the network with fresh weights; on the device "meta", without any."""
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
    """Several networks of one architecture; returns the mean of their logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, …)`` → logits ``(B, regions, …)``; for prediction only."""
        logits: Tensor = self.members[0](x)
        for member in self.members[1:]:
            logits = logits + member(x)
        return logits / len(self.members)


def patient_hash(key: str, patient: str) -> str:
    """Return a hash by which those who have the *key* (hexadecimal) of the prepared folder recognise a patient.

    Without the key, even trying every possible ID reveals nothing.
    """
    return hmac.new(bytes.fromhex(key), patient.encode("utf-8", "surrogatepass"), "sha256").hexdigest()[:32]


def unkeyed_patient_hash(dataset_id: str, patient: str) -> str:
    """Return the hash of older model files; IDs can be guessed from it."""
    return hashlib.sha256(f"{dataset_id}/{patient}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def save_model(path: Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights and *card* with checksums of both; the file appears whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    stored = as_json(card)
    assert isinstance(stored, dict)
    text = json.dumps({"format": FORMAT, **stored})
    metadata = {_KEY: text, _CARD_DIGEST: _digest_of(text.encode()), _WEIGHTS_DIGEST: _digest_of_weights(weights)}
    atomic_write(path, lambda to: save_file(weights, str(to), metadata=metadata))


def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and numbers: one flipped bit would silently change masks."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_card(path: Path) -> ModelCard:
    """Read the description without the weights. Raises ModelFileError when it is not a metaseg model file."""
    why = why_not_openable(path)
    if why is not None:
        missing = not path_exists(path)
        raise ModelFileError(
            "no such model file" if missing else why[0],
            where=path,
            remedy="train one, or name another with --model" if missing else why[1],
        )
    if path.is_dir():
        raise ModelFileError("a folder, not a model file", where=path, remedy="name the model.safetensors in it")
    with _reading(path, "not a model file"), path.open("rb"):  # safetensors reports an unreadable file as missing
        pass
    with _reading(path, "not a model file"), safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise ModelFileError(
            "a safetensors file, but not written by metaseg", where=path, remedy="take the model.safetensors of a run"
        )
    text = metadata[_KEY]
    if metadata.get(_CARD_DIGEST, _digest_of(text.encode())) != _digest_of(text.encode()):
        raise ModelFileError("its description is damaged (checksum)", where=path, remedy=_AGAIN)
    with _reading(path, "its description is damaged"):
        values = parsed(text)
        version = values.pop("format", None)
        if version not in (FORMAT, _FORMER_FORMAT):
            raise ModelFileError(
                f"format version {printable(version)[:20]}, this program reads {FORMAT}",
                where=path,
                remedy="use the program that wrote it",
            )
        card = build(ModelCard, values)
        if version == _FORMER_FORMAT:
            card = _without_former_filter(card)
        _check_plausible(card)
    return card


def _without_former_filter(card: ModelCard) -> ModelCard:
    """Return the card without its smallest lesions: measured in stacks, they reached beyond small metastases."""

    def unfiltered(settings: Mapping[str, Postprocessing]) -> dict[str, Postprocessing]:
        return {name: dataclasses.replace(each, min_size=0.0) for name, each in settings.items()}

    return dataclasses.replace(
        card,
        postprocessing=unfiltered(card.postprocessing),
        depths={
            number: dataclasses.replace(depth, postprocessing=unfiltered(depth.postprocessing))
            for number, depth in card.depths.items()
        },
        former_filter=any(each.min_size > 0 for each in card.postprocessing.values()),
    )


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Translate exceptions as ``decoding`` does, into ModelFileError."""
    try:
        with decoding(path, what, remedy=_AGAIN):
            yield
    except InputError as error:
        raise ModelFileError(error.what, where=path, remedy=error.remedy) from error


def _check_plausible(card: ModelCard) -> None:
    """Raise ValueError for a card that no training writes: a network of its size may not be built."""
    counts = {  # value, and a maximum far above what training chooses
        "members": (card.members, 64),
        "in_channels": (card.in_channels, 1024),
        "out_channels": (card.out_channels, 255),
        "levels": (len(card.widths), 10),
        "widths": (max(card.widths, default=0), 4096),
        "patch": (max(card.patch), 8192),
    }
    for name, (value, most) in counts.items():
        if not 1 <= value <= most:
            raise ValueError(f"{name} is {value}")
    if min(*card.widths, *card.patch) < 1 or not 0 <= card.context <= 64 or card.dims not in (2, 3):
        raise ValueError("a size is not one that training chooses")
    if len(card.strides) != len(card.widths) - 1 or any(
        len(stride) != card.dims or not all(1 <= s <= 8 for s in stride) for stride in card.strides
    ):
        raise ValueError(f"strides are {card.strides}")
    if len(card.regions) != card.out_channels or not card.sequences:
        raise ValueError("regions and output channels differ in number")
    if card.index_region not in card.regions:
        raise ValueError(f"its index region {card.index_region} is not one of its regions")
    if any(not 1 <= value <= 255 for values in card.regions.values() for value in values):
        raise ValueError("a label is not between 1 and 255")
    if not 0 < card.temperature < 1e6 or not 0 < card.foreground_prior < 1:
        raise ValueError(f"temperature {card.temperature}, foreground prior {card.foreground_prior}")
    points = [*card.operating_points.values(), *(p for d in card.depths.values() for p in d.operating_points.values())]
    depths = (each for depth in card.depths.values() for each in depth.postprocessing.values())
    every = [*card.postprocessing.values(), *depths, *(each for p in points for each in p.postprocessing.values())]
    for each in every:
        if not 0 <= each.threshold <= 1 or not 0 <= each.high_threshold <= 1 or each.min_size < 0:
            raise ValueError(f"post-processing {each}")


def load_model_file(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, ModelCard]:
    """Return the network in eval mode with its weights, and its card. Raises ModelFileError."""
    card = read_card(path)
    with _reading(path, "its weights do not fit"), safe_open(str(path), framework="pt") as file:
        model = _without_weights(card)
        _check_shapes(model, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = (file.metadata() or {}).get(_WEIGHTS_DIGEST)
        if digest is not None and digest != _digest_of_weights(weights):
            raise ModelFileError("its weights are damaged (checksum)", where=path, remedy=_AGAIN)
        # Copies: the file's own tensors are pages of a file that may be changed while they are in use.
        dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        copies = {name: tensor.to(dtypes[name], copy=True) for name, tensor in weights.items()}
        model.load_state_dict(copies, assign=True)
    return model.to(device).eval(), card


def _without_weights(card: ModelCard) -> nn.Module:
    """Build the network that *card* describes, without memory for its weights."""
    with torch.device("meta"):
        members = [card.build() for _ in range(card.members)]
    return members[0] if card.members == 1 else Ensemble(members)


def _check_shapes(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError where the file's weights are not those of *model*, before it takes memory for them."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(expected)} differ in size, such as {printable(wrong[0])[:60]}")
