"""Windows, mirror images and several networks: what comes out is what the network says of each voxel."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metaseg_cli.core.inference import sliding_window
from metaseg_cli.core.inference.sliding_window import InferenceSettings, predict_probabilities
from metaseg_cli.core.inference.tta import TestTimeAugmentation
from metaseg_cli.core.inference.windows import LARGEST, Tiling, largest_window, tile
from metaseg_cli.core.model_file import Ensemble
from metaseg_cli.core.models import build_model
from metaseg_cli.errors import ConfigError


def test_windows_of_a_network_that_sees_one_voxel_equal_the_whole() -> None:
    torch.manual_seed(0)
    pointwise = torch.nn.Conv3d(1, 2, 1)
    image = torch.randn(1, 21, 30, 17)
    whole = torch.sigmoid(pointwise(image[None])[0]).detach()
    windows = predict_probabilities(pointwise, image, InferenceSettings(dims=3, patch=(8, 16, 16), regions=2))
    torch.testing.assert_close(windows, whole)


def test_slices_of_a_2d_network_are_predicted_one_by_one() -> None:
    torch.manual_seed(0)
    model = build_model("attention-unet", in_channels=1, out_channels=1, widths=(4, 8)).eval()
    image = torch.randn(1, 9, 20, 24)
    stacked = predict_probabilities(model, image, InferenceSettings(dims=2, patch=(16, 16), regions=1))
    alone = torch.cat(
        [
            predict_probabilities(model, image[:, z : z + 1], InferenceSettings(dims=2, patch=(16, 16), regions=1))
            for z in range(9)
        ],
        1,
    )
    torch.testing.assert_close(stacked, alone, rtol=1e-4, atol=1e-5)


def test_a_picture_above_a_megapixel_goes_window_by_window() -> None:
    model = torch.nn.Conv2d(1, 1, 1)
    image = torch.randn(1, 1, 1100, 1000)
    result = predict_probabilities(model, image, InferenceSettings(dims=2, patch=(64, 64), regions=1))
    torch.testing.assert_close(
        result, torch.sigmoid(model(image.transpose(0, 1)))[:, 0][None].detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("size", "patch"), [((40, 20, 20), (16, 16, 16)), ((7, 50, 33), (8, 16, 16))])
def test_slab_by_slab_is_the_whole(size: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    """Against sums over the whole volume, window by window."""
    torch.manual_seed(1)
    network = torch.nn.Conv3d(1, 1, 3, padding=1)
    image = torch.randn(1, *size)
    window = [min(p, n) for p, n in zip(patch, size, strict=True)]
    total, weights = torch.zeros(size), torch.zeros(size)
    line = [torch.exp(-0.5 * ((torch.arange(w) - (w - 1) / 2) / (w / 8)) ** 2) for w in window]
    weight = torch.einsum("i,j,k->ijk", *line).clamp_min(1e-3)
    starts = []
    for n, w in zip(size, window, strict=True):
        steps = -(-2 * (n - w) // w)
        starts.append([round(i * (n - w) / steps) for i in range(steps + 1)] if steps else [0])
    for z, y, x in torch.cartesian_prod(*map(torch.tensor, starts)).tolist():
        box = (slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
        total[box] += network(image[(slice(None), *box)][None])[0, 0].detach() * weight
        weights[box] += weight
    found = predict_probabilities(network, image, InferenceSettings(dims=3, patch=patch, regions=1))
    torch.testing.assert_close(found[0], torch.sigmoid(total / weights))


def test_nothing_is_found_where_there_is_no_head() -> None:
    network = torch.nn.Conv3d(1, 1, 1)
    assert network.bias is not None
    torch.nn.init.constant_(network.bias, 9.0)  # it sees lesions everywhere
    image = torch.zeros(1, 24, 24, 80)
    image[..., 40:] = torch.randn(24, 24, 40)
    found = predict_probabilities(network, image, InferenceSettings(dims=3, patch=(8, 8, 8), regions=1))[0]
    assert found[..., :32].max() == 0
    assert found[..., 40:].min() > 0.9


@pytest.mark.parametrize("dims", [2, 3])
def test_mirror_images_make_the_answer_symmetric(dims: int) -> None:
    torch.manual_seed(2)
    model = build_model("attention-unet", in_channels=1, out_channels=1, dims=dims, widths=(4, 8)).eval()
    image = torch.randn(1, 8, 16, 16)
    image = image + image.flip(-1)
    tta = TestTimeAugmentation(flips=True)
    found = predict_probabilities(
        model, image, InferenceSettings(dims=dims, patch=(8, 16, 16)[-dims:], regions=1, tta=tta)
    )
    torch.testing.assert_close(found, found.flip(-1), rtol=1e-4, atol=1e-5)
    once = predict_probabilities(model, image, InferenceSettings(dims=dims, patch=(8, 16, 16)[-dims:], regions=1))
    assert not torch.allclose(once, once.flip(-1), rtol=1e-4, atol=1e-5)


class Says(torch.nn.Module):
    """A network of one opinion."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.logit)


@pytest.mark.parametrize(
    ("fusion", "threshold", "expected"),
    [
        ("mean", 0.5, torch.sigmoid(torch.tensor(-1.0)).item()),
        ("max", 0.5, torch.sigmoid(torch.tensor(2.0)).item()),
        ("vote", 0.5, 1 / 3),
        ("vote", 0.2, 2 / 3),
    ],
)
def test_fusion_of_three_networks(fusion: str, threshold: float, expected: float) -> None:
    three = Ensemble([Says(2.0), Says(-1.0), Says(-4.0)])
    tta = TestTimeAugmentation(fusion=fusion, thresholds=(threshold,))
    for dims, patch in ((3, (4, 4, 4)), (2, (8, 8))):
        found = predict_probabilities(
            three, torch.randn(1, 8, 8, 8), InferenceSettings(dims=dims, patch=patch, regions=1, tta=tta)
        )
        torch.testing.assert_close(found, torch.full((1, 8, 8, 8), expected))


def test_a_fusion_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="median"):
        TestTimeAugmentation(fusion="median")


def test_larger_windows_compute_less_and_come_closer_to_the_whole_image() -> None:
    """Only at its borders does a window differ from the image as a whole, and larger ones have fewer of them."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 1, 3, padding=1)
    )
    image = torch.randn(1, 40, 70, 65)
    exact, larger = tile(image.shape[1:], (16, 16, 16)), tile(image.shape[1:], (16, 16, 16), largest=40 * 40 * 40)
    assert larger.voxels < 0.5 * exact.voxels
    assert torch.tensor(larger.shape).prod() <= 40**3
    small = predict_probabilities(model, image, InferenceSettings(dims=3, patch=(16, 16, 16), regions=1))
    large = predict_probabilities(model, image, InferenceSettings(dims=3, patch=(16, 16, 16), regions=1, largest=40**3))
    whole = predict_probabilities(model, image, InferenceSettings(dims=3, patch=(40, 70, 65), regions=1))
    few, many = (large - whole).abs(), (small - whole).abs()
    assert few.max() <= many.max() < 0.1
    assert few.mean() < 0.2 * many.mean() < 0.001


@pytest.mark.parametrize("size", [(155, 240, 240), (16, 16, 16), (9, 300, 31), (48, 47, 49)])
@pytest.mark.parametrize("largest", [None, 30_000, LARGEST])
def test_windows_cover_the_image_and_share_half_a_patch(size: tuple[int, int, int], largest: int | None) -> None:
    patch = (16, 32, 32)
    tiling = tile(size, patch, largest)
    for length, side, starts, known in zip(size, tiling.shape, tiling.starts, patch, strict=True):
        assert starts[0] == 0
        assert starts[-1] + side == length
        assert all(b - a <= side - min(side, known) // 2 for a, b in itertools.pairwise(starts))
    assert len(list(tiling.boxes())) == tiling.voxels // int(torch.tensor(tiling.shape).prod())


@pytest.mark.parametrize(
    ("norm", "expected"), [("batch", LARGEST), ("none", LARGEST), ("instance", None), ("group", None)]
)
def test_windows_stay_patches_where_statistics_come_from_them(norm: str, expected: int | None) -> None:
    assert largest_window(norm) == expected


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    dims = draw(st.sampled_from([2, 3]))
    size = draw(st.tuples(*[st.integers(1, 70)] * dims))
    patch = draw(st.tuples(*[st.integers(1, 24)] * dims))
    return tile(size, patch, draw(st.sampled_from([None, 500, 20_000])))


@settings(max_examples=150, deadline=None)
@given(tilings())
def test_windows_lie_inside_and_reach_every_voxel(tiling: Tiling) -> None:
    covered = torch.zeros(tiling.size, dtype=torch.bool)
    for box in tiling.boxes():
        assert all(0 <= s.start < s.stop <= n for s, n in zip(box, tiling.size, strict=True))
        covered[box] = True
    assert covered.all()


@settings(max_examples=60, deadline=None)
@given(tilings(), st.integers(0, 2**16))
def test_weighted_windows_of_what_a_network_answers_everywhere_are_that_answer(tiling: Tiling, seed: int) -> None:
    """The weights of each voxel sum to 1 after division, so windows of one image give the image back."""
    torch.manual_seed(seed)
    answer = torch.randn(tiling.size)
    total, weights = torch.zeros(tiling.size), torch.zeros(tiling.size)
    for box in tiling.boxes():
        total[box] += answer[box] * tiling.weight
        weights[box] += tiling.weight
    assert (weights > 0).all()
    torch.testing.assert_close(total / weights, answer)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 16)] * 3),
    largest=st.sampled_from([None, 4_000]),
)
def test_a_pointwise_network_gives_the_same_through_any_windows(
    size: tuple[int, int, int], patch: tuple[int, int, int], largest: int | None
) -> None:
    torch.manual_seed(0)
    pointwise = torch.nn.Conv3d(1, 2, 1)
    image = torch.rand(1, *size)
    found = predict_probabilities(pointwise, image, InferenceSettings(dims=3, patch=patch, regions=2, largest=largest))
    whole = torch.sigmoid(pointwise(image[None])[0]).detach()
    shown = found > 0  # a window that varies less than 2 % of the range is background
    torch.testing.assert_close(found[shown], whole[shown])


@pytest.mark.parametrize(("dims", "patch", "expected"), [(3, (8, 16, 16), None), (2, (16, 16), 2)])
def test_every_window_is_reported_also_those_of_background(
    dims: int, patch: tuple[int, ...], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "_SLICE_BATCH", 5 * 30 * 30)
    conv = (torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d)(1, 1, 1)
    image = torch.zeros(1, 9, 30, 30)
    image[:, :4] = torch.randn(1, 4, 30, 30)
    heard: list[tuple[int, int]] = []
    predict_probabilities(
        conv, image, InferenceSettings(dims=dims, patch=patch, regions=1), None, lambda *each: heard.append(each)
    )
    total = expected or tile((9, 30, 30), patch).windows
    assert heard == [(number, total) for number in range(1, total + 1)]
