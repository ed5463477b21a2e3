"""Losses against independent formulas, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from metaseg_cli.core.choices import LOSSES
from metaseg_cli.core.losses import (
    build_loss,
    deep_supervision_loss,
    dice_loss,
    focal_loss,
    focal_tversky_loss,
)
from metaseg_cli.errors import ConfigError


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 2, 6, 7, generator=generator)
    return logits, (torch.rand(2, 2, 6, 7, generator=generator) > 0.8).float()


def test_gamma_zero_is_cross_entropy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(focal_loss(*pair, gamma=0), F.binary_cross_entropy_with_logits(*pair))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_equals_the_papers_formula_in_double_precision(
    pair: tuple[torch.Tensor, torch.Tensor], gamma: float, alpha: float | None
) -> None:
    logits, target = (t.double() for t in pair)
    p = torch.sigmoid(logits)
    p_t = torch.where(target == 1, p, 1 - p)
    alpha_t = torch.ones_like(p) if alpha is None else torch.where(target == 1, alpha, 1 - alpha)
    expected = (-alpha_t * (1 - p_t) ** gamma * p_t.log()).mean()
    torch.testing.assert_close(focal_loss(*pair, gamma=gamma, alpha=alpha).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_losses_equal_those_of_an_independent_library(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    from monai.losses import DiceLoss, FocalLoss, TverskyLoss

    logits, target = pair
    for gamma, alpha in ((2.0, None), (1.5, 0.25)):
        other = FocalLoss(gamma=gamma, alpha=alpha, use_softmax=False)(logits, target)
        torch.testing.assert_close(focal_loss(logits, target, gamma, alpha), other, rtol=1e-5, atol=1e-7)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, target)
    torch.testing.assert_close(dice_loss(logits, target), dice)
    tversky = TverskyLoss(sigmoid=True, batch=True, alpha=0.3, beta=0.7, smooth_nr=1.0, smooth_dr=1.0)
    per_region = [1 - tversky(logits[:, i : i + 1], target[:, i : i + 1]) for i in range(2)]
    expected = torch.stack([(1 - index) ** (1 / 1.5) for index in per_region]).mean()
    torch.testing.assert_close(focal_tversky_loss(logits, target, gamma=1.5), expected)


def test_positives_reduction_divides_by_the_foreground(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = pair
    total = focal_loss(logits, target) * logits.numel()
    torch.testing.assert_close(focal_loss(logits, target, reduction="positives"), total / target.sum())
    assert torch.isfinite(focal_loss(logits, torch.zeros_like(target), reduction="positives"))


def test_focal_in_bfloat16_keeps_value_and_gradient_at_extreme_logits() -> None:
    logits = torch.tensor([[40.0, -40.0, 12.0, -12.0]], dtype=torch.bfloat16, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    loss = focal_loss(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(20.0, rel=1e-3)  # two of four elements cost 40 each
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, focal_tversky_loss])
def test_gradients_are_those_of_finite_differences(loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    target = (torch.rand(1, 2, 3, 4, generator=generator) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


def test_dice_of_a_perfect_answer_is_zero_and_of_the_opposite_one(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, target = pair
    assert dice_loss(100 * (target - 0.5), target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(100 * (0.5 - target), target) > 0.9


def test_dice_without_foreground_rewards_silence() -> None:
    silence = torch.full((1, 1, 8, 8), -50.0)
    assert dice_loss(silence, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(0, abs=1e-6)


def test_tversky_with_equal_weights_and_gamma_one_is_dice(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    tversky = focal_tversky_loss(*pair, miss=0.5, gamma=1.0, smooth=0.5)
    torch.testing.assert_close(tversky, dice_loss(*pair, smooth=1.0))


def test_a_missed_voxel_costs_more_than_a_false_one() -> None:
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    missed, false = (target.clone(), target.clone())
    missed[0, 0, 0, 0], false[0, 0, 0, 3] = 0, 1
    assert focal_tversky_loss(20 * missed - 10, target) > focal_tversky_loss(20 * false - 10, target)


@pytest.mark.parametrize("name", LOSSES)
def test_every_named_loss_falls_when_the_answer_gets_better(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = pair
    loss = build_loss(name)
    assert loss(logits + 2 * (target - 0.5), target) < loss(logits, target)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 1.0, 60.0])
def test_every_named_loss_has_a_finite_gradient_however_sure_the_network_is(name: str, size: float) -> None:
    target = (torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(1)) > 0.8).float()
    for sign in (-1, 1):
        logits = (sign * size * (2 * target - 1)).requires_grad_()
        build_loss(name)(logits, target).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def test_unknown_losses_are_named() -> None:
    with pytest.raises(ConfigError, match="dice-focal"):
        build_loss("dice")


def test_each_head_has_its_own_weighted_loss(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = pair
    total = deep_supervision_loss([logits, -logits], target, focal_loss, (0.25, 0.75))
    torch.testing.assert_close(total, 0.25 * focal_loss(logits, target) + 0.75 * focal_loss(-logits, target))
