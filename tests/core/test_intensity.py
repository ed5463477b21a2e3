"""Intensities become network input by their contrast alone, whatever their unit."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from metaseg_cli.core.intensity import ABOVE_BACKGROUND, head_mask, head_of_normalised, normalise


def head(dtype: type = np.float64) -> np.ndarray:
    rng = np.random.default_rng(0)
    _, y, x = np.indices((6, 24, 20))
    inside = ((y - 12) / 10) ** 2 + ((x - 10) / 8) ** 2 < 1
    return np.where(inside, 400 + rng.normal(0, 40, inside.shape), rng.normal(8, 3, inside.shape))[None].astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-12, -9, -7, -3, 0, 3, 7, 9, 12])
@pytest.mark.parametrize("per", ["case", "slice"])
def test_a_factor_changes_nothing(per: Literal["case", "slice"], exponent: int, dtype: type) -> None:
    scaled: NDArray[Any] = (head() * 10.0**exponent).astype(dtype)
    plain: NDArray[Any] = normalise(head(np.float32), per)
    np.testing.assert_allclose(normalise(scaled, per), plain, atol=2e-4)


def test_numbers_beyond_float32_keep_their_contrast() -> None:
    for factor in (1e-200, 1e200):
        np.testing.assert_allclose(normalise(head() * factor, "case"), normalise(head(), "case"), atol=2e-4)


def test_a_constant_channel_becomes_zero_at_any_scale() -> None:
    for value in (0.0, 1e-9, 1.0, 1e9):
        assert not normalise(np.full((1, 2, 8, 8), value), "case").any()


def test_head_is_found_in_raw_and_in_normalised_numbers() -> None:
    """Both definitions agree on a head in a frame without noise."""
    image = head(np.float32)
    image[image < 100] = 0
    np.testing.assert_array_equal(head_mask(image), head_of_normalised(normalise(image, "case")))


def test_without_a_frame_of_background_all_is_head() -> None:
    cropped = head(np.float32)[:, :, 8:16, 6:14]
    assert head_mask(cropped).all()


def test_background_of_normalised_numbers_reaches_to_its_limit() -> None:
    image = np.zeros((2, 1, 1, 4), np.float32)
    image[0, 0, 0] = [-1.0, -1.0 + 0.9 * ABOVE_BACKGROUND, -1.0 + 1.1 * ABOVE_BACKGROUND, 2.0]
    image[1, 0, 0, 0] = 1.0  # one sequence that shows a voxel is enough
    assert head_of_normalised(image)[0, 0].tolist() == [True, False, True, True]
