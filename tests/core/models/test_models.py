"""One contract for every network, and what is particular to each."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import nn

from metaseg_cli.core.choices import NETWORKS, network_name
from metaseg_cli.core.models import build_model
from metaseg_cli.core.models.attention_unet import AttentionGate
from metaseg_cli.core.models.blocks import ConvConfig, fold_batch_norms
from metaseg_cli.errors import ConfigError

TINY = (4, 8, 16)
every_model = pytest.mark.parametrize("name", NETWORKS)
every_dims = pytest.mark.parametrize("dims", [2, 3])


def tiny(name: str, dims: int = 2, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, **{"in_channels": 2, "out_channels": 3, "dims": dims, "widths": TINY, **settings})


def image(dims: int, size: tuple[int, ...] = (13, 18, 9)) -> torch.Tensor:
    return torch.randn(2, 2, *size[:dims], generator=torch.Generator().manual_seed(1))


@every_model
@every_dims
def test_logits_have_the_inputs_odd_size(name: str, dims: int) -> None:
    x = image(dims)
    assert tiny(name, dims).eval()(x).shape == (2, 3, *x.shape[2:])


@every_model
@every_dims
def test_training_gives_one_output_per_head_at_full_size(name: str, dims: int) -> None:
    model = tiny(name, dims).train()
    outputs = model(image(dims))
    assert [o.shape for o in outputs] == [(2, 3, *image(dims).shape[2:])] * 2
    weights = cast("list[float]", model.head_weights)
    assert len(weights) == len(outputs)
    assert math.isclose(sum(weights), 1)


@every_model
def test_without_deep_supervision_training_gives_one_tensor(name: str) -> None:
    assert isinstance(tiny(name, deep_supervision=False).train()(image(2)), torch.Tensor)


@pytest.mark.slow
@every_model
@every_dims
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_a_gradient_reaches_every_parameter(name: str, dims: int, norm: str) -> None:
    model = tiny(name, dims, norm=norm).train()
    sum(o.square().mean() for o in model(image(dims))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


@every_model
def test_weights_survive_a_round_trip(name: str) -> None:
    first = tiny(name).eval()
    second = build_model(name, in_channels=2, out_channels=3, widths=TINY).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(image(2)), second(image(2)))


@every_model
def test_same_seed_same_weights(name: str) -> None:
    assert torch.equal(tiny(name).eval()(image(2)), tiny(name).eval()(image(2)))


@every_model
def test_an_untrained_network_answers_its_prior(name: str) -> None:
    model = build_model(name, in_channels=1, out_channels=1, widths=TINY, foreground_prior=0.02).eval()
    probability = torch.sigmoid(model(torch.randn(1, 1, 32, 32))).mean()
    assert probability.item() == pytest.approx(0.02, abs=0.01)


@every_model
def test_strides_may_differ_per_axis(name: str) -> None:
    model = tiny(name, dims=3, strides=[(1, 2, 2), (2, 2, 2)]).eval()
    assert model(image(3, (5, 16, 16))).shape == (2, 3, 5, 16, 16)


@every_model
def test_a_network_runs_in_channels_last(name: str) -> None:
    model, x = tiny(name).eval(), image(2)
    expected = model(x)
    laid_out = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(laid_out, expected, rtol=1e-4, atol=1e-5)


@every_model
@every_dims
def test_folding_the_norms_changes_nothing_but_time(name: str, dims: int) -> None:
    model = tiny(name, dims).train()
    for _ in range(3):
        model(image(dims))  # running statistics that differ from the initial ones
    expected = model.eval()(image(dims))
    folded = fold_batch_norms(model)
    assert not [m for m in folded.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d))]
    torch.testing.assert_close(folded(image(dims)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("nested_unet", "nested-unet"), ("UNet++", "nested-unet"), ("Attention-UNet", "attention-unet")],
)
def test_spellings_mean_one_model(spelling: str, name: str) -> None:
    assert network_name(spelling) == name


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="attention-unet"):
        network_name("atention-unett")


@pytest.mark.parametrize("wrong", [{"widths": (8,)}, {"norm": "layer"}, {"dims": 4}, {"in_channels": 0}])
def test_numbers_that_make_no_network_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tiny("attention-unet", **wrong)


# -- nested-unet -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "count"), [(1, 100_961), (2, 511_105), (3, 2_204_961), (4, 9_041_601)])
def test_pruned_networks_have_the_papers_parameter_counts(depth: int, count: int) -> None:
    model = build_model("nested-unet", in_channels=1, out_channels=1, norm="none").pruned(depth)
    one_head = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("heads."))
    assert one_head + sum(p.numel() for p in model.heads[-1].parameters()) == count


def test_pruning_keeps_the_answer_of_its_head() -> None:
    model = tiny("nested-unet").train()
    pruned = model.pruned(1)
    x = image(2, (16, 20))  # divisible by both strides: what is padded differs otherwise
    torch.testing.assert_close(pruned(x)[0], model(x)[0])


def test_prediction_is_the_answer_of_the_last_head() -> None:
    model = tiny("nested-unet", norm="none")
    heads = model.train()(image(2))
    torch.testing.assert_close(model.eval()(image(2)), heads[-1])


def test_a_network_without_inner_heads_cannot_be_pruned() -> None:
    with pytest.raises(ConfigError, match="deep supervision"):
        tiny("nested-unet", deep_supervision=False).pruned(1)


# -- attention-unet --------------------------------------------------------------------------------------------------


def test_gate_equals_the_papers_formula_voxel_by_voxel() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(ConvConfig(dims=2, norm="none"), skip=3, gating=5, stride=(2, 2))
    x, g = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2)
    gated, alpha = gate(x, g)
    q = torch.zeros(1, 1, 2, 2)
    for i in range(2):
        for j in range(2):
            theta = torch.einsum("fcij,cij->f", gate.theta.weight, x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
            phi = gate.phi.weight[:, :, 0, 0] @ g[0, :, i, j] + gate.phi.bias
            q[0, 0, i, j] = gate.psi.weight[0, :, 0, 0] @ torch.relu(theta + phi) + gate.psi.bias[0]
    expected = nn.functional.interpolate(torch.sigmoid(q), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(alpha, expected)
    torch.testing.assert_close(gated, x * expected)


def test_gates_have_the_papers_biases() -> None:
    gate = AttentionGate(ConvConfig(dims=2), skip=3, gating=5, stride=(2, 2))
    assert gate.theta.bias is None
    assert gate.phi.bias is not None
    assert gate.psi.bias is not None
    assert gate.psi.weight.shape == (1, 3, 1, 1)


def test_attention_maps_can_be_read_out_at_the_inputs_size() -> None:
    model = build_model("attention-unet", in_channels=2, out_channels=1, widths=(4, 8, 8, 8)).eval()
    maps = model.attention_maps(image(2))
    assert [m.shape for m in maps] == [(2, 1, 13, 18)] * 2  # three skips, the finest is not gated
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps)
