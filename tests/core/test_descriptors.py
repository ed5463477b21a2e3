"""Descriptors of what an image looks like."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from metaseg_cli.core.descriptors import OF_PAIR, OF_SEQUENCE, columns, describe
from metaseg_cli.core.intensity import normalise
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom

SETTINGS = PhantomSettings(shape=(6, 64, 64), sequences=("t1c", "t2f"))


def phantom(seed: int = 1) -> NDArray[np.float32]:
    return make_phantom(seed, SETTINGS).image


def described(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return describe(normalise(image, "case"), ("t1c", "t2f"), ("t1c", "t2f"), each_slice=False)[0]


def test_columns_hold_each_sequence_and_each_pair() -> None:
    found = columns(("t1n", "t1c", "t2f"))
    assert list(found) == ["t1n", "t1c", "t2f", "t1n and t1c", "t1n and t2f", "t1c and t2f"]
    assert max(part.stop for part in found.values()) == 3 * len(OF_SEQUENCE) + 3 * len(OF_PAIR)


def test_scale_and_offset_of_the_file_do_not_matter() -> None:
    assert np.allclose(described(phantom()), described(40 * phantom() + 300), atol=0.02)


def test_a_missing_sequence_is_nan_and_the_others_are_unchanged() -> None:
    image = normalise(phantom(), "case")
    both, alone = (describe(image[:n], ("t1c", "t2f")[:n], ("t1c", "t2f"), each_slice=False)[0] for n in (2, 1))
    where = columns(("t1c", "t2f"))
    assert np.allclose(both[where["t1c"]], alone[where["t1c"]], atol=0.3)  # the head of one sequence, not of both
    assert np.isnan(alone[where["t2f"]]).all()
    assert np.isnan(alone[where["t1c and t2f"]]).all()


def test_slices_of_pictures_have_rows_of_their_own() -> None:
    image = normalise(phantom(), "slice")
    rows = describe(image, ("t1c", "t2f"), ("t1c", "t2f"), each_slice=True)
    alone = describe(image[:, 2:3], ("t1c", "t2f"), ("t1c", "t2f"), each_slice=True)
    assert rows.shape[0] == 6
    assert np.array_equal(rows[2], alone[0])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 2, 300), (1, 3, 5, 1), (2, 1, 600, 9)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_any_image_has_finite_descriptors(shape: tuple[int, ...], value: float) -> None:
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = describe(value * noise, ("t1c", "t2f")[: shape[0]], ("t1c", "t2f")[: shape[0]], each_slice=True)
    assert np.isfinite(rows).all()
