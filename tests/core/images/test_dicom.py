"""DICOM as scanners and archives give it, made here by pydicom and highdicom."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.datasets import find_cases
from metaseg_cli.core.images import read_image
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError
from tests.dicom_files import (
    SHAPE,
    STEP,
    enhanced,
    make_seg,
    numbers,
    to_jpeg2000,
    write_series,
)


def test_an_oblique_shuffled_series_with_gaps_lies_where_its_positions_say(tmp_path: Path) -> None:
    paths = write_series(tmp_path, numbers())
    (tmp_path / "notes.txt").write_text("not DICOM")
    scan = read_image(tmp_path)
    np.testing.assert_array_equal(scan.array[0], numbers())
    assert scan.spacing_mm == pytest.approx((STEP, 0.7, 0.9))
    np.testing.assert_allclose(scan.origin_mm, (-40, 12, 30), atol=1e-6)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(list(map(str, paths)))
    theirs = reader.Execute()
    np.testing.assert_allclose(scan.direction, theirs.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(scan.spacing_mm[::-1], theirs.GetSpacing(), atol=1e-6)


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    paths = write_series(tmp_path, numbers())
    paths[3].unlink()
    with pytest.raises(InputError, match=f"1 between {paths[2].name} and {paths[4].name}"):
        read_image(tmp_path)


def test_unevenly_spaced_slices_are_refused_with_their_millimetres(tmp_path: Path) -> None:
    def moved(z: int, data: Dataset) -> None:
        if z == 5:
            data.ImagePositionPatient = [p + 0.4 for p in data.ImagePositionPatient]

    write_series(tmp_path, numbers(), change=moved)
    with pytest.raises(InputError, match=r"unevenly spaced: .* mm between"):
        read_image(tmp_path)


def test_two_series_in_one_folder_are_named_and_not_mixed(tmp_path: Path) -> None:
    write_series(tmp_path / "a", numbers(), description="AX T1")
    write_series(tmp_path / "b", numbers(), description="AX T2")
    with pytest.raises(InputError, match=r"2 series: AX T1 \(6 files\), AX T2 \(6 files\)"):
        read_image(tmp_path)


def test_copies_are_passed_over_and_two_images_per_slice_become_channels(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "copies", numbers())
    shutil.copy(paths[0], tmp_path / "copies" / "again")
    scan = read_image(tmp_path / "copies")
    assert scan.shape == SHAPE
    assert "1 copies" in scan.notes[0]

    def echo(z: int, data: Dataset) -> None:
        data.ImagePositionPatient = [float(v) for v in np.array([-40.0, 12.0, 30.0]) + (z // 2) * np.array([0, 0, 3.0])]
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        data.EchoNumbers = z % 2 + 1

    write_series(tmp_path / "echoes", numbers(), change=echo)
    scan = read_image(tmp_path / "echoes")
    np.testing.assert_array_equal(scan.array, np.stack([numbers()[0::2], numbers()[1::2]]))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_syntaxes_give_the_same_numbers(tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path, numbers())
    for path in paths:
        data = pydicom.dcmread(path)
        if syntax == RLELossless:
            data.compress(syntax, generate_instance_uid=False)
        else:
            to_jpeg2000(path)
            continue
        data.save_as(path)
    np.testing.assert_array_equal(read_image(tmp_path).array[0], numbers())


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    def slope(z: int, data: Dataset) -> None:
        data.RescaleSlope, data.RescaleIntercept = z + 1, 10

    write_series(tmp_path, numbers(), change=slope)
    expected = numbers() * (np.arange(6) + 1.0)[:, None, None] + 10
    np.testing.assert_allclose(read_image(tmp_path).array[0], expected)


def test_a_single_image_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    path = write_series(tmp_path, numbers())[0]
    assert read_image(path).shape == (1, 20, 24)


def test_a_zip_is_read_and_a_traversal_and_a_bomb_are_not(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", numbers())
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"inside/{path.name}")
    np.testing.assert_array_equal(read_image(tmp_path / "scan.zip").array[0], numbers())
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside.dcm", b"x")
    with pytest.raises(InputError, match="outside its folder"):
        read_image(tmp_path / "evil.zip")
    assert not (tmp_path / "outside.dcm").exists()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(80 * 2**20))
    with pytest.raises(InputError, match="would unpack to"):
        read_image(tmp_path / "bomb.zip")
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="not a readable ZIP"):
        read_image(tmp_path / "broken.zip")


def test_an_enhanced_multi_frame_image_is_the_series_it_was_made_of(real_data: Path) -> None:
    for size in ("23x38x3", "24x38x3"):
        frames = read_image(real_data / "dicom_seg" / size / "multiframe" / "mf.dcm")
        series = read_image(real_data / "dicom_seg" / size / "image")
        np.testing.assert_array_equal(frames.array, series.array)
        np.testing.assert_allclose(frames.affine, series.affine, atol=1e-6)


def test_frames_in_any_order_are_put_where_they_say(tmp_path: Path) -> None:
    """An enhanced MR image whose frames are shuffled and rescaled each by its own slope."""

    def slope(z: int, own: Dataset) -> None:
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept = z + 1, 5
        own.PixelValueTransformationSequence = [values]

    enhanced(tmp_path / "enhanced.dcm", [3, 0, 5, 1, 4, 2], slope)
    scan = read_image(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(scan.array[0], numbers() * (np.arange(6.0) + 1)[:, None, None] + 5)
    assert scan.spacing_mm == pytest.approx((STEP, 0.7, 0.9))
    assert scan.origin_mm == pytest.approx((-40, 12, 30))


def test_a_folder_of_patients_becomes_cases_with_their_sequences_and_masks(tmp_path: Path) -> None:
    for patient in ("A", "B"):
        study = generate_uid()
        write_series(tmp_path / patient / "s1", numbers(), patient=patient, study=study, description="T2 FLAIR ax")
        source = write_series(tmp_path / patient / "s2", numbers(), patient=patient, study=study)
        write_series(tmp_path / patient / "s0", numbers()[:3], patient=patient, study=study, description="localizer")
        mask = np.zeros(SHAPE, np.uint8)
        mask[2, 5:9, 5:9] = 1
        make_seg(tmp_path / patient / "seg.dcm", source, mask, "BINARY")
    found = find_cases(tmp_path)
    assert found.layout == "dicom"
    assert [(c.patient, list(c.sequences)) for c in found.cases] == [("A", ["t1c", "t2f"]), ("B", ["t1c", "t2f"])]
    assert all(len(c.sequences["t1c"]) == 6 and c.masks[0].name == "seg.dcm" for c in found.cases)
    result = prepare(
        PrepareConfig(raw=tmp_path, out=tmp_path.parent / "prepared", workers=1, spacing="native"), Silent()
    )
    assert result.sequences == ("t1c", "t2f")
    assert [r.lesion_voxels for r in result.cases] == [(16,), (16,)]
    assert all(r.source_spacing_mm == pytest.approx((STEP, 0.7, 0.9)) for r in result.cases)
