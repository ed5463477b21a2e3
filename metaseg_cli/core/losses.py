"""Losses on logits ``(B, regions, …)`` against targets of the same shape with values 0 … 1.

They compute in float32 or better, whatever the logits come in: in bfloat16 a probability near 1 is rounded to
1, and with it the gradient of the rare voxels that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from metaseg_cli.core.choices import LOSSES
from metaseg_cli.core.detection import label_lesions
from metaseg_cli.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
_PART_OF_A_LESION = 0.25  # soft targets above this belong to a lesion: a voxel that resampling left a quarter of


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float | None = None,
    reduction: Literal["mean", "positives"] = "mean",
) -> Tensor:
    """Binary focal loss (Lin et al. 2017, eq. 5): −α_t·(1 − p_t)^γ·log p_t; γ = 0 is cross-entropy.

    *alpha* weighs the foreground, 1 − *alpha* the background; None weighs both 1. *reduction* "mean" divides by the
    number of elements, "positives" by the number of foreground elements (at least 1), as the paper's detector does.
    Return a scalar.
    """
    logits, target = _precise(logits), _precise(target)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # 1 − p_t from the logits themselves: exp(−cross_entropy) would lose it to rounding where p_t is near 1.
    miss = torch.sigmoid(logits) * (1 - target) + torch.sigmoid(-logits) * target
    if gamma == 0:
        loss = cross_entropy
    elif gamma == 2:
        loss = miss.square() * cross_entropy
    else:
        # The gradient of 0^γ is infinite for γ < 1; a voxel with that certainty contributes nothing either way.
        loss = miss.clamp_min(1e-12).pow(gamma) * cross_entropy
    if alpha is not None:
        loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    if reduction == "positives":
        return loss.sum() / target.sum().clamp_min(1.0)
    return loss.mean()


def cross_entropy_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy per element."""
    return F.binary_cross_entropy_with_logits(_precise(logits), _precise(target))


def dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − soft Dice, pooled over the batch for each region, then the mean over regions (Milletari et al. 2016).

    Pooling over the batch keeps patches without foreground from counting as a full error; *smooth* (voxels) in
    numerator and denominator makes a batch without any foreground perfect when nothing is predicted.
    """
    probability, target = torch.sigmoid(_precise(logits)), _precise(target)
    axes = [axis for axis in range(logits.dim()) if axis != 1]
    overlap = (probability * target).sum(axes)
    sizes = probability.sum(axes) + target.sum(axes)
    return (1 - (2 * overlap + smooth) / (sizes + smooth)).mean()


def focal_tversky_loss(
    logits: Tensor, target: Tensor, miss: float = 0.7, gamma: float = 4 / 3, smooth: float = 1.0
) -> Tensor:
    """(1 − Tversky)^(1/γ), pooled over the batch (Abraham & Khan 2019, eq. 4); *miss* weighs false negatives.

    With *miss* above one half a missed voxel costs more than a false one; *gamma* above 1 keeps the gradient of
    regions that are already good.
    """
    probability, target = torch.sigmoid(_precise(logits)), _precise(target)
    axes = [axis for axis in range(logits.dim()) if axis != 1]
    hit = (probability * target).sum(axes)
    missed = ((1 - probability) * target).sum(axes)
    false = (probability * (1 - target)).sum(axes)
    index = (hit + smooth) / (hit + miss * missed + (1 - miss) * false + smooth)
    # The root's slope is infinite at 0, where nothing is left to learn.
    return (1 - index).clamp_min(1e-6).pow(1 / gamma).mean()


def component_dice_loss(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − soft Dice of each lesion in its own surroundings, then the mean over lesions, so that all count alike.

    The surroundings of a lesion are the voxels that are nearer to it than to any other of the patch, as in the
    CC-Dice metric of Jaus et al. 2025. Patches without a lesion contribute nothing here.
    """
    probability, target = torch.sigmoid(_precise(logits)), _precise(target)
    owner, count = _nearest_lesion(target)
    if count == 0:
        return probability.sum() * 0
    inside = owner >= 0
    owner, probability, target = owner[inside], probability[inside], target[inside]

    def per_lesion(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add(0, owner, values)

    overlap = per_lesion(probability * target)
    sizes = per_lesion(probability) + per_lesion(target)
    return (1 - (2 * overlap + smooth) / (sizes + smooth)).mean()


def _nearest_lesion(target: Tensor) -> tuple[Tensor, int]:
    """Return the number of each voxel's nearest lesion in the batch ``(B, R, …)``, −1 for none, and their count."""
    masks = (target > _PART_OF_A_LESION).cpu().numpy()
    owner = np.full(masks.shape, -1, np.int64)
    count = 0
    for index in np.ndindex(*masks.shape[:2]):
        mask = masks[index]
        if not mask.any():
            continue
        labels, found = label_lesions(mask)
        if found > 1:
            nearest = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
            owner[index] = labels[tuple(nearest)] - 1 + count
        else:
            owner[index] = count
        count += found
    return torch.from_numpy(owner).to(target.device), count


def build_loss(name: str, *, gamma: float = 2.0, alpha: float | None = None) -> Loss:
    """Build the loss that ``--loss`` names, a weighted sum of terms. Raises ConfigError."""
    if name not in LOSSES:
        raise ConfigError(f"unknown loss {name!r}", remedy=f"take one of {', '.join(LOSSES)}")
    terms: dict[str, Loss] = {
        "focal": partial(focal_loss, gamma=gamma, alpha=alpha),
        "cross-entropy": cross_entropy_loss,
        "dice": dice_loss,
        "tversky": focal_tversky_loss,
        "component-dice": component_dice_loss,
    }
    weights = LOSSES[name]

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return sum((weight * terms[term](logits, target) for term, weight in weights.items()), start=torch.zeros(()))

    return loss


def deep_supervision_loss(
    outputs: Tensor | Sequence[Tensor], target: Tensor, loss: Loss, weights: Sequence[float]
) -> Tensor:
    """Return the loss of every head against the same target, weighted by *weights* (the model's ``head_weights``)."""
    if isinstance(outputs, Tensor):
        return loss(outputs, target)
    return torch.stack([w * loss(each, target) for w, each in zip(weights, outputs, strict=True)]).sum()


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
