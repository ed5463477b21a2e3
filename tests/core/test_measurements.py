"""Measured lengths against shapes whose lengths are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaseg_cli.core.measurements import measure, sum_of_diameters

Spacing = tuple[float, float, float]


def ellipsoid(axes_mm: tuple[float, float, float], spacing: Spacing, turn_degrees: float = 0.0) -> np.ndarray:
    """Semi-axes z, y, x in mm; turned in the axial plane."""
    size = [int(2 * (max(axes_mm) + 3) / s) for s in spacing]
    z, y, x = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)], indexing="ij"
    )
    a = np.deg2rad(turn_degrees)
    y, x = np.cos(a) * y + np.sin(a) * x, -np.sin(a) * y + np.cos(a) * x
    return (z / axes_mm[0]) ** 2 + (y / axes_mm[1]) ** 2 + (x / axes_mm[2]) ** 2 <= 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (3.0, 0.6, 0.6), (1.0, 0.5, 0.9)])
@pytest.mark.parametrize("radius", [3.0, 7.0, 15.0])
def test_a_sphere_has_its_diameter(radius: float, spacing: Spacing) -> None:
    found = measure(ellipsoid((radius,) * 3, spacing), spacing)
    within = max(spacing[1:]) * 1.1
    assert found.longest == pytest.approx(2 * radius, abs=within)
    assert found.perpendicular == pytest.approx(2 * radius, abs=within)
    assert found.feret == pytest.approx(2 * radius, abs=max(spacing) * 1.1)


@pytest.mark.parametrize("turn", [0, 20, 45, 77])
def test_an_ellipsoid_has_its_axes(turn: float) -> None:
    spacing = (2.0, 0.5, 0.5)
    found = measure(ellipsoid((6, 14, 8), spacing, turn), spacing)
    assert found.longest == pytest.approx(28, abs=0.8)
    assert found.perpendicular == pytest.approx(16, abs=0.8)


def test_an_oblique_cylinder_is_longer_in_space_than_on_any_slice() -> None:
    spacing = (1.0, 1.0, 1.0)
    grid = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"), axis=-1) - 19.5
    axis = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)
    along = grid @ axis
    away = np.linalg.norm(grid - along[..., None] * axis, axis=-1)
    found = measure((np.abs(along) <= 12) & (away <= 3), spacing)
    assert found.feret == pytest.approx(np.hypot(24, 6), abs=1.5)
    assert found.longest < 12
    assert found.slices[1] - found.slices[0] + 1 == pytest.approx(24 / np.sqrt(2) + 6 / np.sqrt(2), abs=2)


def test_one_voxel_is_as_long_as_its_spacing() -> None:
    mask = np.zeros((3, 4, 4), bool)
    mask[1, 2, 2] = True
    found = measure(mask, (3.0, 0.5, 0.7))
    assert (found.longest, found.perpendicular) == pytest.approx((0.7, 0.5))
    assert found.feret == pytest.approx(3.0)
    assert (found.slice, found.slices) == (1, (1, 1))
    assert measure(mask[1:2]).feret == pytest.approx(1.0)
    with pytest.raises(ValueError, match="empty"):
        measure(mask & False)


def test_the_perpendicular_is_a_chord_not_a_shadow() -> None:
    # A long thin parallelogram: seen from its end it is wider than any chord across it.
    y, x = np.mgrid[:60, :120]
    mask = ((x - y > 10) & (x - y < 60) & (y >= 20) & (y < 40))[None]
    found = measure(mask)
    hull = np.argwhere(mask[0]) @ np.array([1.0, 1.0])
    assert found.perpendicular < found.longest
    assert found.perpendicular < np.ptp(hull)


def test_slices_are_axial_however_the_scan_is_stored() -> None:
    from metaseg_cli.core.detection import find_lesions
    from metaseg_cli.core.images import Volume
    from metaseg_cli.core.inference.predictor import _measured

    # Sagittal: the array's first axis runs to the patient's left, its last one to the head.
    mask = np.zeros((20, 30, 40), bool)
    mask[8:12, 10:16, 5:35] = True
    sagittal = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    volume = Volume(array=mask[None], spacing_mm=(2.0, 1.0, 1.0), source=Path("a.nii.gz"), direction=sagittal)
    numbers, lesions = find_lesions(mask, volume.spacing_mm)
    (found,) = _measured(numbers, lesions, volume)
    assert found.slices == (0, 29)
    assert found.longest < 11  # 8 × 6 mm, not the 30 mm from slice to slice
    assert found.feret > 30


def test_targets_are_measurable_and_at_most_five() -> None:
    spacing = (5.0, 0.5, 0.5)
    large = measure(ellipsoid((8, 8, 8), spacing), spacing)
    small = measure(ellipsoid((4, 4, 4), spacing), spacing)
    flat = measure(ellipsoid((8, 8, 8), spacing)[1:2], spacing)
    assert large.measurable
    assert not small.measurable
    assert flat.slices[0] == flat.slices[1]
    assert not flat.measurable
    assert sum_of_diameters([large] * 7 + [small, flat]) == pytest.approx(5 * large.longest)
    assert sum_of_diameters([small]) == 0
