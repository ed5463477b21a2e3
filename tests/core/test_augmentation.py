"""Random augmentation: parameters apart from their effect."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metaseg_cli.core import augmentation


@pytest.mark.parametrize("shape", [(6, 2, 24, 28), (3, 2, 10, 24, 20)])
def test_augmentation_moves_image_and_target_together(shape: tuple[int, ...]) -> None:
    settings = augmentation.Augmentation(spatial=1.0, elastic=1.0, each=0.0, rarely=0.0)
    target = torch.zeros(shape[0], 1, *shape[2:])
    target[(slice(None), slice(None), *[slice(n // 4, n // 2) for n in shape[2:]])] = 1
    image = target.expand(-1, 2, *[-1] * (len(shape) - 2)).clone()
    moved_image, moved_target = augmentation.apply(
        image, target, augmentation.draw(settings, shape, np.random.default_rng(0))
    )
    assert not torch.equal(moved_target, target)
    assert moved_target.min() >= 0
    assert moved_target.max() <= 1 + 1e-6  # interpolation rounds
    torch.testing.assert_close(moved_image[:, :1], moved_target)


def test_augmentation_repeats_with_the_same_parameters() -> None:
    shape = (4, 1, 16, 16)
    image, target = torch.randn(shape), (torch.rand(shape) > 0.9).float()
    before = image.clone()
    p = augmentation.draw(
        augmentation.Augmentation(each=1.0, rarely=1.0, elastic=1.0, paste=1.0), shape, np.random.default_rng(1)
    )
    first, second = augmentation.apply(image, target, p), augmentation.apply(image, target, p)
    assert torch.equal(first[0], second[0])
    assert torch.equal(image, before)
    assert not torch.equal(first[0], image)


def test_nothing_drawn_changes_nothing() -> None:
    shape = (2, 1, 16, 16)
    image, target = torch.randn(shape), torch.zeros(shape)
    settings = augmentation.Augmentation(spatial=0.0, elastic=0.0, each=0.0, rarely=0.0, flip_axes=())
    changed, _ = augmentation.apply(image, target, augmentation.draw(settings, shape, np.random.default_rng(0)))
    torch.testing.assert_close(changed, image)


@pytest.mark.parametrize("shape", [(2, 20, 30), (1, 6, 20, 30)])
def test_blur_is_a_gaussian_filter(shape: tuple[int, ...]) -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    sigma = [0.0] * (len(shape) - 2) + [0.8, 0.8]
    expected = gaussian_filter(image.numpy(), sigma, mode="nearest", radius=3)
    np.testing.assert_allclose(augmentation._blurred(image, 0.8).numpy(), expected, atol=1e-6)


def test_rotation_keeps_proportions_in_patches_that_are_not_square() -> None:
    y, x = torch.meshgrid(torch.arange(40) - 20.0, torch.arange(80) - 40.0, indexing="ij")
    disc = ((y**2 + x**2) < 100).float()[None, None]
    settings = augmentation.Augmentation(
        spatial=1.0, rotation=90, scale=(1.0, 1.0), elastic=0.0, each=0.0, rarely=0.0, flip_axes=()
    )
    for seed in range(5):
        p = augmentation.draw(settings, tuple(disc.shape), np.random.default_rng(seed))
        _, moved = augmentation.apply(disc, disc, p)
        assert abs(moved.sum() / disc.sum() - 1) < 0.25
        rows, columns = moved[0, 0].any(1).sum(), moved[0, 0].any(0).sum()
        assert 0.75 < rows / columns < 1.33


@pytest.mark.parametrize("size", [(6, 9), (4, 5, 7)])
def test_the_sampling_grid_is_that_of_torch(size: tuple[int, ...]) -> None:
    affine = torch.randn(2, len(size), len(size) + 1)
    expected = torch.nn.functional.affine_grid(affine, [2, 1, *size], align_corners=False)
    torch.testing.assert_close(augmentation._affine_grid(affine, torch.Size(size)), expected)
