"""What the training cases looked like, and what is unlike them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import mahalanobis

from metaseg_cli.core.descriptors import columns
from metaseg_cli.core.input_statistics import (
    CaseInput,
    Distribution,
    InputStatistics,
    LengthRange,
    input_statistics,
)
from metaseg_cli.core.typed_json import as_json, build

NAMES = ("t1c", "t2f")
LENGTH = max(part.stop for part in columns(NAMES).values())


def cases(count: int, seed: int = 0, spread: float = 1.0) -> list[CaseInput]:
    """Of random descriptors around 0 (t1c) and 3 (t2f)."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        row = spread * rng.standard_normal((1, LENGTH))
        row[:, columns(NAMES)["t2f"]] += 3
        made.append(
            CaseInput(
                patient=f"p{number}",
                voxel_mm=(1.0, 0.9, 0.9 + 0.01 * number),
                head_mm=(150.0, 190.0, 160.0),
                picture_px=None,
                rows=row.astype(np.float32),
            )
        )
    return made


def fitted(count: int = 20) -> InputStatistics:
    found = input_statistics(cases(count), NAMES)
    assert found is not None
    return found


def rows_of(case: CaseInput) -> NDArray[np.float64]:
    return case.rows.astype(float)


def test_distance_is_that_of_mahalanobis() -> None:
    rows = np.random.default_rng(1).standard_normal((50, 3)) * [1, 2, 3]
    found = Distribution.of(rows)
    inverse = np.diag(1 / np.array(found.scale)) @ np.array(found.precision) @ np.diag(1 / np.array(found.scale))
    expected = mahalanobis([5, 0, 1], found.mean, inverse)
    assert found.squared_distances(np.array([[5.0, 0, 1]]))[0] == pytest.approx(expected**2)


def test_held_out_cases_are_seldom_odd_and_other_ones_are() -> None:
    found = fitted()
    held_out = [found.odd_intensities(rows_of(case), NAMES) for case in cases(100, seed=9)]
    assert sum(map(bool, held_out)) <= 5
    assert all(found.odd_intensities(rows_of(case) * 4, NAMES) for case in cases(20, seed=9))


def test_swapped_sequences_are_recognised() -> None:
    row = rows_of(cases(1, seed=5)[0])
    where = columns(NAMES)
    swapped = row.copy()
    swapped[:, where["t1c"]], swapped[:, where["t2f"]] = row[:, where["t2f"]], row[:, where["t1c"]]
    assert fitted().mistaken(row, NAMES) == {}
    assert fitted().mistaken(swapped, NAMES) == {"t1c": "t2f", "t2f": "t1c"}


def test_a_missing_sequence_is_not_odd() -> None:
    row = rows_of(cases(1, seed=5)[0])
    row[:, columns(NAMES)["t2f"]] = np.nan
    row[:, columns(NAMES)["t1c and t2f"]] = np.nan
    assert fitted().odd_intensities(row, NAMES) == []


def test_few_patients_have_lengths_only() -> None:
    found = input_statistics(cases(3), NAMES)
    assert found is not None
    assert not found.distributions
    assert found.voxel_mm is not None
    assert found.odd_intensities(100 + rows_of(cases(1)[0]), NAMES) == []


def test_nothing_known_is_no_statistics() -> None:
    assert input_statistics([], NAMES) is None


def test_lengths_outside_the_range_are_odd() -> None:
    known = LengthRange.of([(1.0, 0.9, 0.9), (1.2, 1.0, 1.0)] * 10)
    assert known.odd((1.1, 0.95, 0.95)) == []
    assert known.odd((1.4, 0.9, 0.9)) == []
    assert known.odd((6.5, 0.78, 0.3)) == [0, 2]
    assert known.text(0) == "1–1.2"


def test_statistics_survive_the_model_card() -> None:
    found = fitted(8)
    assert build(InputStatistics, as_json(found)) == found


def test_damaged_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        Distribution(mean=(0.0,), scale=(1.0, 1.0), precision=((1.0,),))
