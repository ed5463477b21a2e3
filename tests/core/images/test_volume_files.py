"""Volume files are read right or refused: their length, their headers, and what a header must not name."""

from __future__ import annotations

import bz2
import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from metaseg_cli.core.images import itk_decoder, read_image, read_mask, write_mask
from metaseg_cli.core.images.nrrd import _dtype
from metaseg_cli.errors import InputError

AFFINE = np.array([[-0.9, 0, 0, 12], [0, 1.1, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1]])


def numbers(shape: tuple[int, ...] = (5, 4, 3), dtype: type = np.int16) -> np.ndarray:
    return (np.random.default_rng(0).integers(1, 100, shape)).astype(dtype)


def nifti(path: Path, array: np.ndarray | None = None, kind: Any = nibabel.Nifti1Image) -> Path:
    array = numbers() if array is None else array
    image = kind(array, AFFINE)
    image.set_data_dtype(array.dtype)
    nibabel.save(image, path)
    return path


def with_itk(path: Path, *, compressed: bool = False, array: np.ndarray | None = None) -> Path:
    image = sitk.GetImageFromArray(numbers() if array is None else array)
    image.SetSpacing((0.9, 1.1, 2.5))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def text_nrrd(path: Path) -> Path:
    values = " ".join(map(str, numbers().ravel()))
    header = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 3 4 5\nspace: LPS\nencoding: ascii\n"
    path.write_text(f"{header}space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\n\n{values}\n")
    return path


def plain_pair(path: Path) -> Path:
    """``.mhd`` and ``.nhdr`` beside their voxels, not compressed."""
    return with_itk(path)


WHOLE: dict[str, Callable[[Path], Path]] = {
    "a.nii": nifti,
    "a.nii.gz": nifti,
    "b.nii": lambda p: nifti(p, kind=nibabel.Nifti2Image),
    "a.hdr": lambda p: nifti(p, kind=nibabel.Nifti1Pair),
    "a.mgz": lambda p: nifti(p, kind=nibabel.MGHImage),
    "a.nrrd": with_itk,
    "packed.nrrd": lambda p: with_itk(p, compressed=True),
    "text.nrrd": text_nrrd,
    "a.mha": with_itk,
    "packed.mha": lambda p: with_itk(p, compressed=True),
    "a.nhdr": plain_pair,
    "a.mhd": plain_pair,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_proper_prefix_is_refused_or_gives_what_the_whole_file_gives(name: str, tmp_path: Path) -> None:
    path = WHOLE[name](tmp_path / name)
    whole = read_image(path)
    for part in [p for p in tmp_path.iterdir() if p.is_file()]:
        data = part.read_bytes()
        lengths = range(len(data)) if len(data) < 500 else np.linspace(0, len(data) - 1, 120).astype(int)
        for length in [*lengths, *range(max(0, len(data) - 40), len(data))]:
            part.write_bytes(data[:length])
            try:
                got = read_image(path)
            except InputError:
                continue
            np.testing.assert_array_equal(got.array, whole.array)
            np.testing.assert_allclose(got.affine, whole.affine)
        part.write_bytes(data)


@pytest.mark.parametrize("offset", [0, 348, 336, 353, 368, 4000, -16, np.nan, np.inf, 352.5])
def test_a_wrong_data_offset_is_refused(offset: float, tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii")
    data = bytearray(path.read_bytes())
    data[108:112] = struct.pack("<f", offset)
    path.write_bytes(data)
    if offset == 0:  # which means: behind the header
        np.testing.assert_array_equal(read_image(path).array[0].T, numbers())
    else:
        with pytest.raises(InputError):
            read_image(path)


def test_a_whole_gzip_with_too_few_voxels_is_cut_short(tmp_path: Path) -> None:
    data = nifti(tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:-20]))
    with pytest.raises(InputError, match="cut short"):
        read_image(tmp_path / "a.nii.gz")


def test_a_flipped_bit_in_a_compressed_volume_is_noticed(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_image(path)


# -- NIfTI as nibabel has it -----------------------------------------------------------------------------------------


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, tuple[int, ...]]:
    """A random NIfTI file whose header places it by sform, qform, both, or neither, with oddities that people have."""
    shape = draw(st.sampled_from([(5, 4, 3), (5, 4, 1), (5, 4), (1, 4, 3)]))
    angles = draw(st.tuples(*[st.floats(-3.1, 3.1)] * 3))
    rotation = np.asarray(nibabel.eulerangles.euler2mat(*angles)) @ np.diag(
        [draw(st.sampled_from([1.0, -1.0])), 1.0, 1.0]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    kind = draw(st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]))
    image = kind(np.ones(shape, np.uint8), None)
    codes = draw(st.sampled_from([(0, 1), (1, 0), (1, 1), (2, 4), (0, 0)]))
    image.header.set_qform(affine, codes[0])
    image.header.set_sform(affine * (draw(st.sampled_from([1.0, 1.5])) if codes[1] else 1.0), codes[1])
    if draw(st.booleans()) and codes[1]:
        image.header["pixdim"][1] *= -1
    image.header.set_xyzt_units(draw(st.sampled_from(["mm", "unknown"])))
    # nibabel refuses a quaternion that rounding made too long; that one is tested below.
    assume(sum(float(image.header[f"quatern_{axis}"]) ** 2 for axis in "bcd") <= 1)
    return image.to_bytes(), shape


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(headers())
def test_the_masks_affine_equals_the_scans_by_nibabel(tmp_path: Path, made: tuple[bytes, tuple[int, ...]]) -> None:
    data, shape = made
    (tmp_path / "a.nii").write_bytes(data)
    scan = read_image(tmp_path / "a.nii")
    write_mask(tmp_path / "m.nii", np.ones(scan.shape, np.uint8), scan)
    before, after = nibabel.load(tmp_path / "a.nii"), nibabel.load(tmp_path / "m.nii")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    assert after.shape == shape
    corner = np.array([*(n - 1 for n in (*shape, 1)[:3]), 1])
    ours = np.diag([-1, -1, 1, 1]) @ scan.affine @ corner
    if len(shape) == 3:
        np.testing.assert_allclose(ours, before.affine @ corner, atol=1e-3)


def test_a_quaternion_that_is_a_little_too_long_is_scaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(), None)
    image.header.set_qform(np.diag([-1.0, -1.0, 1.0, 1.0]), 1)
    expected = image.header.get_best_affine()
    image.header["quatern_d"] = 1.003
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    scan = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ scan.affine, expected, atol=1e-5)
    write_mask(tmp_path / "m.nii", scan.array[0].astype(np.uint8), scan)
    np.testing.assert_allclose(nibabel.load(tmp_path / "m.nii").affine, expected, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_a_header_without_a_usable_place_is_refused(bad: float, form: str, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(), None)
    if form == "sform":
        image.header["sform_code"] = 1
        image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = bad
    else:
        image.header["qform_code"] = 1
        image.header["pixdim"][1:4] = bad
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    with pytest.raises(InputError, match="header does not say"):
        read_image(tmp_path / "a.nii")


def test_two_voxel_sizes_in_one_header_are_said_and_the_sforms_hold(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(), None)
    image.header.set_sform(AFFINE * [[2], [2], [2], [1]], 1)
    image.header.set_zooms((0.9, 1.1, 2.5))
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_image(tmp_path / "a.nii")
    assert scan.spacing_mm == pytest.approx((5.0, 2.2, 1.8))
    assert "two voxel sizes" in scan.notes[0]


def test_metres_and_micrometres_become_millimetres_and_the_header_stays(tmp_path: Path) -> None:
    for unit, factor in (("meter", 1000), ("micron", 0.001)):
        image = nibabel.Nifti1Image(numbers(), np.vstack([AFFINE[:3] / factor, AFFINE[3:]]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii")
        scan = read_image(tmp_path / "a.nii")
        assert scan.spacing_mm == pytest.approx((2.5, 1.1, 0.9), rel=1e-5)
        write_mask(tmp_path / "m.nii", scan.array[0].astype(np.uint8), scan)
        np.testing.assert_allclose(nibabel.load(tmp_path / "m.nii").affine, image.affine, rtol=1e-5)
        assert read_image(tmp_path / "m.nii").spacing_mm == pytest.approx((2.5, 1.1, 0.9), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_and_byte_order_is_what_nibabel_reads(dtype: type, order: str, tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=order)
    nibabel.save(nibabel.Nifti1Image(numbers(dtype=dtype), AFFINE, header, dtype=dtype), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz").array[0].T, numbers(dtype=dtype))


def test_scaling_channels_and_colours_are_what_nibabel_reads(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers((5, 4, 3, 2)), AFFINE)
    image.header.set_slope_inter(0.25, -3)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").array, expected.transpose(3, 2, 1, 0), rtol=1e-6)
    colours = numbers((5, 4, 3, 3), np.uint8)
    rgb = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(rgb, AFFINE), tmp_path / "c.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "c.nii").array, colours.transpose(3, 2, 1, 0))


def test_a_pair_is_read_from_either_name_and_needs_both(tmp_path: Path) -> None:
    nifti(tmp_path / "a.hdr", kind=nibabel.Nifti1Pair)
    for name in ("a.hdr", "a.img"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0].T, numbers())
    scan = read_image(tmp_path / "a.hdr")
    write_mask(tmp_path / "m.hdr", scan.array[0].astype(np.uint8), scan)
    np.testing.assert_allclose(nibabel.load(tmp_path / "m.hdr").affine, AFFINE, atol=1e-4)
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match=r"needs a\.img"):
        read_image(tmp_path / "a.hdr")


def test_analyze_is_refused_for_its_unknown_side(tmp_path: Path) -> None:
    nibabel.save(nibabel.AnalyzeImage(numbers(), AFFINE), tmp_path / "a.hdr")
    with pytest.raises(InputError, match=r"Analyze 7\.5"):
        read_image(tmp_path / "a.hdr")


def test_a_mask_takes_the_place_of_its_scan_and_no_word_of_its_header(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(), AFFINE)
    image.header["descrip"] = b"JOHN DOE 1950"
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_image(tmp_path / "a.nii")
    write_mask(tmp_path / "m.nii", scan.array[0].astype(np.uint8), scan)
    assert b"JOHN" not in (tmp_path / "m.nii").read_bytes()


# -- NRRD and MetaImage ----------------------------------------------------------------------------------------------

NRRD = (
    "NRRD0004\ntype: {type}\ndimension: 3\nsizes: {sizes}\nspace: {space}\nspace directions: {directions}\n"
    "space origin: (0,0,0)\nencoding: raw\nendian: little\n{more}\n"
)
GOOD = {
    "type": "uint8",
    "sizes": "5 4 3",
    "space": "left-posterior-superior",
    "directions": "(1,0,0) (0,1,0) (0,0,2)",
    "more": "",
}
META = (
    "NDims = {dims}\nDimSize = {sizes}\nElementSpacing = {spacing}\nTransformMatrix = {matrix}\nElementType = {type}\n"
    "{more}ElementDataFile = {file}\n"
)
GOOD_META = {
    "dims": "3",
    "sizes": "5 4 3",
    "spacing": "1 1 2",
    "matrix": "1 0 0 0 1 0 0 0 1",
    "type": "MET_UCHAR",
    "more": "",
    "file": "LOCAL",
}


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": "5 4"},
        {"sizes": "5 4 2147483648"},
        {"sizes": "5 4 -3"},
        {"sizes": "5 4 0"},
        {"sizes": "5 4 99999999999999999999"},
        {"sizes": "5 4 2"},
        {"sizes": "5 4 4"},
        {"type": "block"},
        {"type": "uint16"},
        {"directions": "(1,0,0) (0.5,1.5,0) (0,0,2.5)"},
        {"directions": "(nan,0,0) (0,1,0) (0,0,2.5)"},
        {"directions": "(0,0,0) (0,1,0) (0,0,2.5)"},
        {"more": "data file: /etc/hostname\n"},
        {"more": "data file: other.raw\n"},
        {"more": "byte skip: -5\n"},
        {"more": "byte skip: 7\n"},
        {"more": "sizes: 5 2 6\n"},
        {"more": 'space units: "um" "um" "um"\n'},
        {"directions": "none (0,1,0) (0,0,2.5)"},
        {"space": "right-posterior-inferior"},
        {"more": "kinds: complex domain domain\n"},
        {"more": "content: \0\n"},
    ],
    ids=str,
)
def test_a_wrong_nrrd_header_is_refused_before_a_decoder_sees_it(change: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other.raw").write_bytes(bytes(60))
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD.format(**GOOD).encode() + bytes(range(60)))
    assert read_image(path).array.max() == 59
    path.write_bytes(NRRD.format(**{**GOOD, **change}).encode() + bytes(range(60)))
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"dims": "-1"},
        {"dims": "2"},
        {"dims": "100000"},
        {"sizes": "5 4 2147483648"},
        {"sizes": "5 4 0"},
        {"sizes": "5 4 4"},
        {"spacing": "1 1 0"},
        {"spacing": "1 1 -2"},
        {"spacing": "1 nan 2"},
        {"spacing": "1 1"},
        {"matrix": "1 0 0 0 1 0 0.5 0 1"},
        {"matrix": "0 0 0 0 1 0 0 0 1"},
        {"type": "MET_OTHER"},
        {"type": "MET_SHORT"},
        {"file": "/etc/hostname"},
        {"file": "other.raw"},
        {"file": "LIST"},
        {"more": "Origin = 1 2 3\nOffset = 4 5 6\n"},
        {"more": "ElementNumberOfChannels = 100000\n"},
        {"more": "HeaderSize = -1\n"},
        {"more": "CompressedData = True\n"},
    ],
    ids=str,
)
def test_a_wrong_metaimage_header_is_refused_before_a_decoder_sees_it(change: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other.raw").write_bytes(bytes(60))
    path = tmp_path / "a.mha"
    path.write_bytes(META.format(**GOOD_META).encode() + bytes(range(60)))
    assert read_image(path).array.max() == 59
    path.write_bytes(META.format(**{**GOOD_META, **change}).encode() + bytes(range(60)))
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/a.raw", "..", "", "LIST 2", "slice%d.raw 1 3 1"])
@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_detached_header_reads_no_file_elsewhere(name: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(60))
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.raw").write_bytes(bytes(60))
    path = tmp_path / "in" / f"a{suffix}"
    if suffix == ".nhdr":
        path.write_text(NRRD.format(**{**GOOD, "more": f"data file: {name}\n"}))
    else:
        path.write_text(META.format(**{**GOOD_META, "file": name}))
    with pytest.raises(InputError):
        read_image(path)


def test_a_detached_header_reads_the_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(range(60)))
    (tmp_path / "a.nhdr").write_text(NRRD.format(**{**GOOD, "more": "data file: a.raw\n"}))
    (tmp_path / "a.mhd").write_text(META.format(**{**GOOD_META, "file": "a.raw"}))
    for name in ("a.nhdr", "a.mhd"):
        assert read_image(tmp_path / name).array.max() == 59


def test_an_unsaid_place_is_said_for_nrrd_and_metaimage(tmp_path: Path) -> None:
    nrrd = (
        NRRD.format(**GOOD)
        .replace("space: left-posterior-superior\n", "")
        .replace("space origin", "axis mins: 0 0 0\n#")
    )
    (tmp_path / "a.nrrd").write_bytes(
        nrrd.replace("space directions: (1,0,0) (0,1,0) (0,0,2)\n", "").encode() + bytes(60)
    )
    meta = (
        META.format(**GOOD_META)
        .replace("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")
        .replace("ElementSpacing = 1 1 2\n", "")
    )
    (tmp_path / "a.mha").write_bytes(meta.encode() + bytes(60))
    for name in ("a.nrrd", "a.mha"):
        notes = " ".join(read_image(tmp_path / name).notes)
        assert "no voxel size" in notes
        assert "which side is left" in notes


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("uchar", 1),
        ("unsigned long long int", 8),
        ("signed short int", 2),
        ("uint16_t", 2),
        ("double", 8),
        ("block", None),
    ],
)
def test_every_spelling_of_a_type_is_known(kind: str, size: int | None) -> None:
    dtype = _dtype(kind)
    assert (dtype and dtype.itemsize) == size


@pytest.mark.slow
def test_a_decoder_that_dies_costs_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = tmp_path / "bad.mha", with_itk(tmp_path / "good.mha")
    # ITK 5.4 dies of it, or does not end.
    bad.write_bytes(META.format(**{**GOOD_META, "dims": "-1"}).encode() + bytes(60))
    itk_decoder.decode(good)
    with monkeypatch.context() as impatient:
        impatient.setattr(itk_decoder, "_SECONDS", 3.0)
        with pytest.raises(InputError, match=r"decoder crashed|cannot be read"):
            itk_decoder.decode(bad)
    np.testing.assert_array_equal(itk_decoder.decode(good).array, numbers())


TYPES = {"int8": "CHAR", "uint8": "UCHAR", "int16": "SHORT", "uint16": "USHORT", "int32": "INT", "float32": "FLOAT"}


def random_places(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions in columns, spacing, and origin of a turned grid, its axes in any order."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0][:, rng.permutation(3)]
    return turn * rng.choice([-1, 1], 3), rng.uniform(0.4, 6, 3), rng.uniform(-200, 200, 3)


@pytest.mark.parametrize("seed", range(12))
def test_nrrd_lies_where_itk_has_it(seed: int, tmp_path: Path) -> None:
    turn, spacing, origin = random_places(seed)
    array = numbers(dtype=np.dtype(list(TYPES)[seed % 6]).type)
    space = ("RAS", "left-posterior-superior", "LAS", "left-anterior-superior", "LPS", "right-anterior-superior")[
        seed % 6
    ]
    directions = " ".join(f"({','.join(map(repr, map(float, column)))})" for column in (turn * spacing).T)
    kind = "float" if array.dtype == np.float32 else str(array.dtype)
    head = (
        f"NRRD0005\ntype: {kind}\ndimension: 4\nsizes: 2 3 4 5\nspace: {space}\nendian: big\n"
        f"kinds: {('list', 'vector')[seed % 2]} domain domain domain\nspace directions: none {directions}\n"
        f"encoding: gzip\nspace origin: ({','.join(map(repr, map(float, origin)))})\n\n"
    )
    both = np.stack([array, array[::-1]])
    voxels = both.transpose(1, 2, 3, 0).astype(array.dtype.newbyteorder(">")).tobytes()
    path = tmp_path / "a.nrrd"
    path.write_bytes(head.encode() + gzip.compress(voxels))
    volume, itk = read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array, both)
    np.testing.assert_array_equal(volume.array, np.moveaxis(sitk.GetArrayFromImage(itk), -1, 0))
    corners = [itk.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 4))]
    index = np.array([(0, 0, 0, 1), (2, 0, 0, 1), (0, 3, 0, 1), (0, 0, 4, 1)])
    np.testing.assert_allclose((index @ volume.affine.T)[:, :3], corners, atol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_metaimage_lies_where_itk_has_it(seed: int, tmp_path: Path) -> None:
    turn, spacing, origin = random_places(seed)
    array = numbers(dtype=np.dtype(list(TYPES)[seed % 6]).type)
    matrix, place = ("TransformMatrix", "Rotation", "Orientation")[seed % 3], ("Offset", "Position", "Origin")[seed % 3]
    packed = bool(seed % 2)
    order: Literal["<", ">"] = ">" if seed % 4 > 1 else "<"
    voxels = array.astype(array.dtype.newbyteorder(order)).tobytes()
    voxels = zlib.compress(voxels) if packed else voxels
    head = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": order == ">",
        "CompressedData": packed,
        "CompressedDataSize": len(voxels),
        matrix: " ".join(repr(float(v)) for v in turn.T.ravel()),
        place: " ".join(repr(float(v)) for v in origin),
        "ElementSpacing": " ".join(repr(float(v)) for v in spacing),
        "DimSize": "3 4 5",
        "ElementType": f"MET_{TYPES[str(array.dtype)]}",
        "ElementDataFile": "LOCAL",
    }
    path = tmp_path / "a.mha"
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in head.items()).encode() + voxels)
    volume, itk = read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(itk))
    np.testing.assert_array_equal(volume.array[0], array)
    corners = [itk.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 4))]
    index = np.array([(0, 0, 0, 1), (2, 0, 0, 1), (0, 3, 0, 1), (0, 0, 4, 1)])
    np.testing.assert_allclose((index @ volume.affine.T)[:, :3], corners, atol=1e-3)


@pytest.mark.parametrize(
    "said", ["", "CompressedDataSize = 5\n", "CompressedDataSize = 0\n", "CompressedDataSize = 99999\n"]
)
def test_a_wrong_size_of_compressed_voxels_changes_none_of_them(said: str, tmp_path: Path) -> None:
    """ITK gives uninitialised memory where the size is missing or too small."""
    path = tmp_path / "a.mha"
    head = META.format(**{**GOOD_META, "more": f"CompressedData = True\n{said}"})
    path.write_bytes(head.encode() + zlib.compress(bytes(range(60))))
    np.testing.assert_array_equal(read_image(path).array.ravel(), np.arange(60))


def test_lengths_of_a_plain_nrrd_in_other_units_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    head = NRRD.format(**GOOD).replace("space: left-posterior-superior\n", "").replace("space origin", "#")
    head = head.replace("space directions: (1,0,0) (0,1,0) (0,0,2)", 'spacings: 0.1 0.1 0.2\nunits: "cm" "cm" "cm"')
    path.write_bytes(head.encode() + bytes(60))
    with pytest.raises(InputError, match="not in mm"):
        read_image(path)


def plain_nrrd(path: Path, place: str, encoding: str = "raw") -> Path:
    """Without space directions: *place* says where the voxels lie, if anything."""
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 4 3\nencoding: {encoding}\n{place}\n\n"
    data = bytes(range(60))
    path.write_bytes(head.encode() + (bz2.compress(data) if encoding == "bzip2" else data))
    return path


@pytest.mark.parametrize(
    "place",
    [
        "spacings: 1 -3 2",
        "spacings: 1 3 2\naxis mins: 10 -20 30",
        "spacings: 1 3 2\naxis mins: 10 -20 30\ncenters: cell node cell",
        "spacings: 1 3 2\naxis mins: nan nan nan",
    ],
)
def test_nrrd_without_directions_lies_where_itk_has_it(place: str, tmp_path: Path) -> None:
    volume, itk = read_image(plain_nrrd(tmp_path / "a.nrrd", place)), sitk.ReadImage(str(tmp_path / "a.nrrd"))
    assert "which side is left" in " ".join(volume.notes)
    for index in ((0, 0, 0), (4, 3, 2)):
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], itk.TransformIndexToPhysicalPoint(index))


def test_axis_mins_and_maxs_of_an_nrrd_give_its_voxel_size(tmp_path: Path) -> None:
    volume = read_image(
        plain_nrrd(tmp_path / "a.nrrd", "axis mins: 0 0 0\naxis maxs: 10 12 4\ncenters: cell cell node")
    )
    assert volume.spacing_mm == (2, 3, 2)
    assert volume.origin_mm == (1, 1.5, 0)


def test_bzip2_is_read_in_nrrd(tmp_path: Path) -> None:
    volume = read_image(plain_nrrd(tmp_path / "a.nrrd", "spacings: 1 3 2", "bzip2"))
    np.testing.assert_array_equal(volume.array.ravel(), np.arange(60))


def test_label_255_beside_small_labels_of_a_volume_is_kept_and_said(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 1, 1], labels[2, 2, 2], labels[3, 3, 3] = 1, 2, 255
    mask = read_mask(nifti(tmp_path / "m.nii.gz", labels))
    assert sorted(np.unique(mask.array).tolist()) == [0, 1, 2, 255]
    assert any("'ignore'" in note for note in mask.notes)
    plain = read_mask(nifti(tmp_path / "p.nii.gz", np.where(labels == 255, 3, labels).astype(np.uint8)))
    assert plain.notes == ()
