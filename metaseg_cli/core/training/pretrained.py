"""Start from the weights of another model, matched by what they mean and not by where they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True)
class MatchedWeights:
    """Which share of the weights was loaded, and what was ``skipped``, in words."""

    fraction: float
    skipped: tuple[str, ...]


def check_same_architecture(card: ModelCard, other_card: ModelCard) -> None:
    """Raise ConfigError when the two are different kinds of network."""
    if (card.name, card.dims) != (other_card.name, other_card.dims):
        raise ConfigError(
            f"--init is a {other_card.dims}D {other_card.name}, this run trains a {card.dims}D {card.name}",
            remedy=f"add --model {other_card.name} --dims {other_card.dims}, or name another model",
        )


@torch.no_grad()
def load_matching_weights(model: nn.Module, card: ModelCard, other: nn.Module, other_card: ModelCard) -> MatchedWeights:
    """Copy what fits from *other* into *model*: sequences and regions by name, everything else by name and shape.

    Both must have the same architecture. Raises ConfigError when nothing fits.
    """
    mine, theirs = model.state_dict(), other.state_dict()
    inputs, their_inputs = _input_names(card), _input_names(other_card)
    first = next(name for name, tensor in mine.items() if tensor.dim() > 2)
    loaded, skipped = 0, []
    for name, tensor in mine.items():
        if name not in theirs:
            skipped.append(name)
        elif name == first:
            loaded += _copy_by_name(tensor, theirs[name], inputs, their_inputs, axis=1)
        elif name.startswith("heads."):
            loaded += _copy_by_name(tensor, theirs[name], list(card.regions), list(other_card.regions), axis=0)
        elif tensor.shape == theirs[name].shape:
            tensor.copy_(theirs[name])
            loaded += tensor.numel()
        else:
            skipped.append(name)
    if not loaded:
        raise ConfigError("--init has nothing that fits this network", remedy="take the same --widths, or leave it out")
    fraction = loaded / sum(tensor.numel() for tensor in mine.values())
    return MatchedWeights(fraction, (*_blocks(skipped), *_differences(card, other_card)))


def _blocks(skipped: Sequence[str]) -> list[str]:
    blocks = dict.fromkeys(".".join(name.split(".")[:2]) for name in skipped)
    return [f"{block}: other widths" for block in blocks]


def _differences(card: ModelCard, other_card: ModelCard) -> list[str]:
    """Say which sequences and regions only one of the two has."""
    mine, theirs = (*card.sequences, *card.regions), (*other_card.sequences, *other_card.regions)
    return [
        *(f"{name}: new here, starts from random weights" for name in mine if name not in theirs),
        *(f"{name}: not used here" for name in theirs if name not in mine),
    ]


def _input_names(card: ModelCard) -> list[str]:
    """Name each input channel: the sequence with the offset of its slice, then the availability channels."""
    slices = [f"{sequence}{z:+d}" for sequence in card.sequences for z in range(-card.context, card.context + 1)]
    return slices + ([f"{sequence} available" for sequence in card.sequences] if card.presence else [])


def _copy_by_name(mine: Tensor, theirs: Tensor, names: Sequence[str], their_names: Sequence[str], axis: int) -> int:
    """Copy along *axis* by name; return how many numbers were loaded."""
    axis = min(axis, mine.dim() - 1)
    rest = [n for a, n in enumerate(mine.shape) if a != axis]
    if rest != [n for a, n in enumerate(theirs.shape) if a != axis]:
        return 0
    loaded = 0
    for number, name in enumerate(names):
        if name in their_names:
            mine.select(axis, number).copy_(theirs.select(axis, their_names.index(name)))
            loaded += mine.select(axis, number).numel()
    return loaded
