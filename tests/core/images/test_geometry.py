"""Volumes keep their place in the patient, whatever the format and orientation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from metaseg_cli.core.images import (
    Reorientation,
    Volume,
    describe_difference,
    on_grid_of,
    read_image,
    read_mask,
    reorient,
    resample_to,
    same_grid,
    to_canonical,
    write_mask,
)
from metaseg_cli.core.images.reading import read_geometry
from metaseg_cli.core.preprocessing import Preprocessing, preprocess, resample, resample_label
from metaseg_cli.errors import InputError

FORMATS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
ORIENTATIONS = [(p, s) for p in itertools.permutations(range(3)) for s in itertools.product((1, -1), repeat=3)]


def volume(shape: tuple[int, int, int], direction: np.ndarray, **fields: Any) -> Volume:
    array = np.random.default_rng(0).integers(0, 4, (1, *shape)).astype(np.uint8)
    values: dict[str, Any] = {
        "spacing_mm": (3.0, 0.9, 0.7),
        "origin_mm": (-11.0, 23.0, 5.5),
        "source": Path("made"),
    } | fields
    return Volume(array=array, direction=tuple(direction.ravel()), **values)


def permutation(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    return np.eye(3)[:, list(order)] * np.array(signs)


def world(of: Volume) -> dict[tuple[float, ...], int]:
    """Patient coordinates → value, of every voxel."""
    z, y, x = of.shape
    index = np.array(list(itertools.product(range(z), range(y), range(x))))
    points = np.column_stack([index[:, ::-1], np.ones(len(index))]) @ of.affine.T
    return {tuple(np.round(p[:3], 3)): int(v) for p, v in zip(points, of.array[0].ravel(), strict=True)}


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_turns_to_canonical_and_back(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    before = volume((3, 4, 5), permutation(order, signs))
    turn = to_canonical(before)
    after = reorient(before, turn)
    np.testing.assert_allclose(np.reshape(after.direction, (3, 3)), np.eye(3), atol=1e-12)
    assert world(after) == world(before)
    np.testing.assert_array_equal(turn.invert(after.array), before.array)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    mirrored=st.booleans(),
)
def test_oblique_grids_keep_every_voxel_in_place_when_reoriented(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    angles: tuple[float, float, float],
    mirrored: bool,
) -> None:
    rotation = Rotation.from_euler("xyz", angles).as_matrix() * (np.array([-1, 1, 1]) if mirrored else 1)
    before = volume(shape, rotation, spacing_mm=spacing, origin_mm=origin)
    reorientation = to_canonical(before)
    after = reorient(before, reorientation)
    assert to_canonical(after) == Reorientation(axes=(0, 1, 2), flipped=())
    index = np.indices(shape)
    moved = reorientation.apply(index)  # the old (z, y, x) of every new voxel
    old = np.concatenate([moved[::-1].reshape(3, -1), np.ones((1, moved[0].size))])
    new = np.concatenate([np.indices(after.shape)[::-1].reshape(3, -1), np.ones((1, moved[0].size))])
    np.testing.assert_allclose(after.affine @ new, before.affine @ old, atol=1e-6)
    np.testing.assert_array_equal(reorientation.invert(after.array), before.array)


@pytest.mark.parametrize("suffix", [f for f in FORMATS if f != ".nii.gz"])  # as .nii
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_survives_a_file(
    order: tuple[int, ...], signs: tuple[int, ...], suffix: str, tmp_path: Path
) -> None:
    before = volume((3, 4, 5), permutation(order, signs))
    write_mask(tmp_path / f"a{suffix}", before.array[0], before)
    after = read_image(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 9)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    turns=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    mirrored=st.booleans(),
    suffix=st.sampled_from(FORMATS),
)
def test_any_oblique_volume_survives_write_and_read(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    turns: tuple[float, float, float],
    mirrored: bool,
    suffix: str,
    tmp_path: Path,
) -> None:
    direction = np.eye(3)
    for (a, b), angle in zip(((0, 1), (1, 2), (0, 2)), turns, strict=True):
        plane = np.eye(3)
        plane[a, a] = plane[b, b] = np.cos(angle)
        plane[a, b], plane[b, a] = -np.sin(angle), np.sin(angle)
        direction = direction @ plane
    if mirrored:
        direction[:, 0] *= -1
    before = volume(shape, direction, spacing_mm=spacing, origin_mm=origin)
    path = tmp_path / f"a{suffix}"
    write_mask(path, before.array[0], before)
    after = read_image(path)
    np.testing.assert_array_equal(after.array, before.array)
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in reversed(shape)), 1]])
    np.testing.assert_allclose(corners @ after.affine.T, corners @ before.affine.T, atol=1e-3)
    assert same_grid(read_geometry([path]), after)
    # … and again: nothing drifts.
    write_mask(tmp_path / f"b{suffix}", after.array[0], after)
    np.testing.assert_allclose(read_image(tmp_path / f"b{suffix}").affine, after.affine, atol=1e-4)


def nifti(path: Path, sform: np.ndarray | None, s_code: int, qform: np.ndarray | None, q_code: int) -> Path:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), None)
    image.set_sform(sform, s_code)
    image.set_qform(qform, q_code)
    nibabel.save(image, path)
    return path


A = np.array([[1.0, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
FLIPPED = np.diag([-1.0, 2, 3, 1])
SHEARED = A + np.array([[0, 0.003, 0, 0], [0] * 4, [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        ((A, 1, FLIPPED, 1), "disagree"),
        ((None, 0, None, 0), "no orientation"),
        ((SHEARED, 2, None, 0), "right angles"),
        ((A, 1, A, 1), None),
    ],
)
def test_a_strange_nifti_header_is_said_and_comes_back_for_every_reader(
    tmp_path: Path, forms: tuple[Any, ...], said: str | None
) -> None:
    scan = nifti(tmp_path / "scan.nii.gz", *forms)
    image = read_image(scan)
    assert any(said in note for note in image.notes) if said else not image.notes
    write_mask(tmp_path / "mask.nii.gz", image.array[0], image)
    before, after = nibabel.load(scan), nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_array_equal(after.get_fdata(), before.get_fdata())
    assert int(after.header["sform_code"]) == int(before.header["sform_code"]) or said is None
    np.testing.assert_allclose(read_image(tmp_path / "mask.nii.gz").affine, image.affine, atol=1e-4)


def test_a_nifti_beside_its_uncompressed_namesake_is_read_from_itself(tmp_path: Path) -> None:
    one, other = volume((3, 4, 5), np.eye(3)), volume((3, 4, 5), np.eye(3))
    other = Volume(**{**vars(other), "array": 3 - other.array})
    write_mask(tmp_path / "a.nii", one.array[0], one)
    write_mask(tmp_path / "a.nii.gz", other.array[0], other)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").array, one.array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array, other.array)


def test_a_truly_sheared_nifti_is_refused(tmp_path: Path) -> None:
    sheared = A.copy()
    sheared[0, 1] = 1.0
    with pytest.raises(InputError, match="right angles"):
        read_image(nifti(tmp_path / "scan.nii.gz", sheared, 2, None, 0))


def test_a_mask_in_another_orientation_is_turned_onto_its_image() -> None:
    image = volume((4, 5, 6), np.eye(3))
    for order, signs in ORIENTATIONS[::5]:
        other = volume((4, 5, 6), permutation(order, signs))
        straight = reorient(other, to_canonical(other))
        image = Volume(**{**vars(straight), "array": np.zeros_like(straight.array)})
        placed = on_grid_of(other, image)
        assert placed is not None
        np.testing.assert_array_equal(placed.array, straight.array)


def test_a_cropped_mask_is_put_back_and_one_that_sticks_out_is_not() -> None:
    image = volume((4, 5, 6), np.eye(3))
    origin = (image.affine @ [2, 1, 1, 1])[:3]
    part = volume((2, 3, 4), np.eye(3), origin_mm=tuple(origin))
    placed = on_grid_of(part, image)
    assert placed is not None
    np.testing.assert_array_equal(placed.array[:, 1:3, 1:4, 2:6], part.array)
    assert on_grid_of(volume((4, 5, 9), np.eye(3)), image) is None


def test_a_flipped_mask_is_named_with_its_millimetres() -> None:
    image = volume((4, 5, 6), np.eye(3))
    flipped = volume((4, 5, 6), np.diag([-1.0, 1, 1]))
    assert on_grid_of(flipped, image) is None
    said = describe_difference(flipped, image)
    assert "left and right flipped" in said
    assert "7.0 mm" in said


def test_a_sequence_on_another_grid_is_brought_onto_the_first_by_its_geometry() -> None:
    grid = volume((8, 20, 20), np.eye(3), spacing_mm=(2.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0))
    ramp = np.broadcast_to(np.arange(30.0)[:, None, None] - 5, (30, 12, 12))  # its value is its z in mm
    other = Volume(array=ramp[None], spacing_mm=(1.0, 2.0, 2.0), origin_mm=(-1.0, -1.0, -5.0), source=Path("other"))
    brought = resample_to(other, grid)
    expected = np.arange(8) * 2.0
    np.testing.assert_allclose(brought.array[0, :, 5, 5], expected, atol=1e-4)
    assert "another grid" in brought.notes[0]
    far = Volume(array=ramp[None], spacing_mm=(1.0, 2.0, 2.0), origin_mm=(500.0, 0.0, 0.0), source=Path("far"))
    with pytest.raises(InputError, match="covers only 0%"):
        resample_to(far, grid)


# -- preprocessing ---------------------------------------------------------------------------------------------------


def head(shape: tuple[int, int, int] = (12, 40, 44)) -> np.ndarray:
    z, y, x = np.indices(shape)
    centre = [n / 2 for n in shape]
    inside = sum(((a - c) / (0.35 * n)) ** 2 for a, c, n in zip((z, y, x), centre, shape, strict=True)) < 1
    return (inside * (100 + np.random.default_rng(0).normal(0, 5, shape))).astype(np.float32)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0), (4.0, 0.8, 0.8)])
def test_what_preprocessing_does_is_undone_exactly(
    order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, float, float] | None
) -> None:
    scan = Volume(
        array=head()[None],
        spacing_mm=(2.0, 1.0, 1.0),
        direction=tuple(permutation(order, signs).ravel()),
        source=Path("head"),
    )
    label = np.zeros(scan.shape, np.uint8)
    label[5:8, 15:22, 18:26] = 2
    image, placement = preprocess(scan, Preprocessing(oriented=True, spacing_mm=spacing), keep=label)
    on_grid = placement.label(label)
    assert on_grid.shape == image.shape[1:]
    back = placement.invert((on_grid == 2).astype(np.float32)[None])[0]
    assert back.shape == scan.shape
    if spacing is None:
        np.testing.assert_array_equal(back >= 0.5, label == 2)
    else:
        agree = 2 * ((back >= 0.5) & (label == 2)).sum() / ((back >= 0.5).sum() + (label == 2).sum())
        assert agree > 0.75  # of a block three slices thick, on slices of 4 mm


def test_the_crop_keeps_the_head_and_every_label() -> None:
    padded = np.zeros((30, 90, 90), np.float32)
    padded[8:20, 20:60, 22:66] = head()
    scan = Volume(array=padded[None], spacing_mm=(1.0, 1.0, 1.0), source=Path("head"))
    label = np.zeros(padded.shape, np.uint8)
    label[29, 89, 89] = 1
    image, _ = preprocess(scan, Preprocessing(oriented=True))
    assert image.shape[1:] < padded.shape
    assert image.shape[2] < 60
    _, keeping = preprocess(scan, Preprocessing(oriented=True), keep=label)
    assert keeping.label(label).sum() == 1


def test_resampling_is_scipys_spline_and_anisotropic_slices_are_not_mixed() -> None:
    from scipy import ndimage

    values = np.random.default_rng(0).normal(size=(1, 9, 20, 24)).astype(np.float32)
    ours = resample(values, (18, 30, 36), (1.0, 1.0, 1.0), 3)
    theirs = ndimage.zoom(values[0], (2, 1.5, 1.5), order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(ours[0], theirs, atol=1e-5)
    thick = resample(values, (18, 20, 24), (6.0, 1.0, 1.0), 3)
    np.testing.assert_array_equal(thick[0, ::2], values[0])
    np.testing.assert_array_equal(thick[0, 1::2], values[0])


def test_no_lesion_vanishes_in_resampling() -> None:
    label = np.zeros((40, 60, 60), np.uint8)
    label[10, 10, 10] = 3
    label[20:30, 20:30, 20:30] = 1
    coarse = resample_label(label, (10, 15, 15), (1.0, 1.0, 1.0))
    assert set(np.unique(coarse)) == {0, 1, 3}


def test_read_mask_of_another_orientation_keeps_values(tmp_path: Path) -> None:
    before = volume((3, 4, 5), permutation((2, 0, 1), (1, -1, 1)))
    write_mask(tmp_path / "m.nii.gz", before.array[0], before)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz").array, before.array)
