"""Start from the weights of another model, matched by what they mean and not by where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True)
class Transfer:
    """What came over: how many of the weights' numbers, and what did not, in words."""

    share: float
    left: tuple[str, ...]


def check_alike(card: ModelCard, other_card: ModelCard) -> None:
    """Raises ConfigError when the two are different kinds of network."""
    if (card.name, card.dims) != (other_card.name, other_card.dims):
        raise ConfigError(
            f"--init is a {other_card.dims}D {other_card.name}, this run trains a {card.dims}D {card.name}",
            remedy=f"add --model {other_card.name} --dims {other_card.dims}, or name another model",
        )


@torch.no_grad()
def take_over(model: nn.Module, card: ModelCard, other: nn.Module, other_card: ModelCard) -> Transfer:
    """Copy what fits from *other* into *model*: sequences and regions by name, everything else by place and shape.

    The networks must be alike. Raises ConfigError when nothing fits.
    """
    mine, theirs = model.state_dict(), other.state_dict()
    inputs, outputs = _input_names(card), list(card.regions)
    their_inputs, their_outputs = _input_names(other_card), list(other_card.regions)
    first = next(name for name, tensor in mine.items() if tensor.dim() > 2)
    taken, left = 0, []
    for name, tensor in mine.items():
        if name not in theirs:
            left.append(name)
            continue
        source = theirs[name]
        if name == first:
            taken += _copy_named(tensor, source, inputs, their_inputs, axis=1)
        elif name.startswith("heads."):
            taken += _copy_named(tensor, source, outputs, their_outputs, axis=0)
        elif tensor.shape == source.shape:
            tensor.copy_(source)
            taken += tensor.numel()
        else:
            left.append(name)
    if not taken:
        raise ConfigError("--init has nothing that fits this network", remedy="take the same --widths, or leave it out")
    blocks = dict.fromkeys(".".join(name.split(".")[:2]) for name in left)
    notes = [f"{block}: other widths" for block in blocks]
    notes += [
        f"{name}: new here, starts fresh"
        for name in (*card.sequences, *outputs)
        if name not in (*other_card.sequences, *their_outputs)
    ]
    notes += [
        f"{name}: not wanted here"
        for name in (*other_card.sequences, *their_outputs)
        if name not in (*card.sequences, *outputs)
    ]
    return Transfer(taken / sum(tensor.numel() for tensor in mine.values()), tuple(notes))


def _input_names(card: ModelCard) -> list[str]:
    """One name for each input channel: the sequence with the distance of its slice, then the presence channels."""
    slices = [f"{sequence}{z:+d}" for sequence in card.sequences for z in range(-card.context, card.context + 1)]
    return slices + ([f"{sequence} is there" for sequence in card.sequences] if card.presence else [])


def _copy_named(mine: Tensor, theirs: Tensor, names: Sequence[str], their_names: Sequence[str], axis: int) -> int:
    """Copy along *axis* by name; returns how many numbers came over."""
    axis = min(axis, mine.dim() - 1)
    rest = [n for a, n in enumerate(mine.shape) if a != axis]
    if rest != [n for a, n in enumerate(theirs.shape) if a != axis]:
        return 0
    taken = 0
    for number, name in enumerate(names):
        if name in their_names:
            mine.select(axis, number).copy_(theirs.select(axis, their_names.index(name)))
            taken += mine.select(axis, number).numel()
    return taken
