"""Pixels of every syntax and format: whole, and the numbers that an independent reader gives."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
    generate_uid,
)

from metaseg_cli.core.images import is_dicom, read_image
from metaseg_cli.errors import InputError
from tests.dicom_files import enhanced, numbers, to_jpeg2000, write_series

Change = Callable[[int, Dataset], None]


def twelve_bits(_: int, data: Dataset) -> None:
    """An overlay in the unused bits, as old files have it."""
    data.BitsStored, data.HighBit = 12, 11
    data.PixelData = (numbers()[0] % 4096 | 0x8000).astype(np.uint16).tobytes()


def signed_twelve_bits(_: int, data: Dataset) -> None:
    data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 1
    data.PixelData = (numbers()[0] * 2 % 4096).astype(np.uint16).tobytes()


def signed(_: int, data: Dataset) -> None:
    data.PixelRepresentation = 1
    data.PixelData = (numbers()[0].astype(np.int16) - 1000).tobytes()


def rescaled(_: int, data: Dataset) -> None:
    data.RescaleSlope, data.RescaleIntercept = "0.684", "-200"


def inverted(_: int, data: Dataset) -> None:
    data.PhotometricInterpretation = "MONOCHROME1"


def inverted_and_rescaled(z: int, data: Dataset) -> None:
    twelve_bits(z, data)
    inverted(z, data)
    data.RescaleSlope, data.RescaleIntercept = 2, -10


def inverted_and_signed(z: int, data: Dataset) -> None:
    signed(z, data)
    inverted(z, data)


def slope_zero(_: int, data: Dataset) -> None:
    data.RescaleSlope, data.RescaleIntercept = 0, 7


def colour(planar: int, photometric: str = "RGB") -> Change:
    def change(_: int, data: Dataset) -> None:
        data.PhotometricInterpretation, data.PlanarConfiguration = photometric, planar
        data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = 3, 8, 8, 7
        data.PixelData = (np.arange(20 * 24 * 3) % 251).astype(np.uint8).tobytes()

    return change


def palette(_: int, data: Dataset) -> None:
    data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = "PALETTE COLOR", 8, 8, 7
    data.PixelData = (numbers()[0] % 256).astype(np.uint8).tobytes()
    for i, name in enumerate(("Red", "Green", "Blue"), start=1):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = (np.arange(256) * i * 50 % 65536).astype("<u2").tobytes()
        setattr(data, f"{name}PaletteColorLookupTableData", table)


FORMATS: list[Change] = [
    *(twelve_bits, signed_twelve_bits, signed, rescaled, inverted, inverted_and_rescaled, inverted_and_signed),
    *(slope_zero, palette, colour(0), colour(1), colour(0, "YBR_FULL")),
]


@pytest.mark.parametrize("change", FORMATS, ids=lambda c: c.__qualname__.split(".")[0])
def test_every_pixel_format_gives_the_numbers_of_gdcm(tmp_path: Path, change: Change) -> None:
    path = write_series(tmp_path, numbers()[:1], change=change)[0]
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))[0]
    theirs = theirs[None] if theirs.ndim == 2 else np.moveaxis(theirs, -1, 0)
    np.testing.assert_allclose(read_image(path).array[:, 0], theirs, rtol=1e-6)


def save_as(path: Path, syntax: str) -> None:
    data = pydicom.dcmread(path)
    if syntax == RLELossless:
        data.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data.file_meta.TransferSyntaxUID = UID(syntax)
        pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=False, enforce_file_format=True)
        return
    else:
        data.file_meta.TransferSyntaxUID = UID(syntax)
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_every_uncompressed_syntax_gives_the_same_numbers(tmp_path: Path, syntax: str) -> None:
    path = write_series(tmp_path, numbers()[:1])[0]
    save_as(path, syntax)
    np.testing.assert_array_equal(read_image(path).array[0, 0], numbers()[0])


@pytest.mark.parametrize("compressed", [False, True])
def test_monochrome1_is_bright_as_high_in_single_and_multi_frame_objects(tmp_path: Path, compressed: bool) -> None:
    single = write_series(tmp_path / "single", numbers()[:1], change=inverted)[0]
    enhanced(tmp_path / "multi.dcm", [0, 1, 2])
    multi = tmp_path / "multi.dcm"
    data = pydicom.dcmread(multi)
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(multi)
    if compressed:
        to_jpeg2000_frames(multi, tmp_path)
        data = pydicom.dcmread(single)
        data.PhotometricInterpretation = "MONOCHROME2"
        data.save_as(single)
        to_jpeg2000(single)
        data = pydicom.dcmread(single)
        data.PhotometricInterpretation = "MONOCHROME1"
        data.save_as(single)
    np.testing.assert_array_equal(read_image(single).array[0, 0], 65535 - numbers()[0])
    np.testing.assert_array_equal(read_image(multi).array[0], 65535 - numbers()[:3])


def to_jpeg2000_frames(path: Path, folder: Path) -> None:
    """Replace the frames of a multi-frame object by those of single images, compressed."""
    data = pydicom.dcmread(path)
    frames = []
    for single in write_series(folder / "frames", numbers()[:3]):
        to_jpeg2000(single)
        frames += list(generate_frames(pydicom.dcmread(single).PixelData, number_of_frames=1))
        syntax = pydicom.dcmread(single).file_meta.TransferSyntaxUID
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate(frames), syntax
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.save_as(path)


def test_a_compressed_object_that_lacks_a_frame_or_has_another_size_is_refused(tmp_path: Path) -> None:
    enhanced(tmp_path / "multi.dcm", [0, 1, 2])
    to_jpeg2000_frames(tmp_path / "multi.dcm", tmp_path)
    np.testing.assert_array_equal(read_image(tmp_path / "multi.dcm").array[0], numbers()[:3])
    data = pydicom.dcmread(tmp_path / "multi.dcm")
    frames = list(generate_frames(data.PixelData, number_of_frames=3))
    for changed, message in (
        (frames[:2], "2 of 3 frames"),
        ([*frames, frames[0]], "4 of 3 frames|3 of 3|frames"),
        ([frames[0], frames[1][:-20], frames[2]], "frame 2 is cut off"),
    ):
        data.PixelData = encapsulate(changed)
        data.save_as(tmp_path / "changed.dcm")
        with pytest.raises(InputError, match=message):
            read_image(tmp_path / "changed.dcm")
    data.PixelData, data.Rows = encapsulate(frames), 19
    data.save_as(tmp_path / "changed.dcm")
    with pytest.raises(InputError, match="24×20 pixels, the header promises 24×19"):
        read_image(tmp_path / "changed.dcm")


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("PixelData", numbers()[0].tobytes()[:-100], r"less than expected \(860, the header promises 960\)"),
        ("PixelData", numbers()[0].tobytes() + b"\1\2" * 24, "more than expected"),
        ("PixelData", b"", "no pixels"),
        ("Rows", 30, "less than expected"),
        ("HighBit", 14, "bits up to bit 14"),
        ("BitsStored", 17, "17 of 16 bits"),
        ("SamplesPerPixel", 3, "3 samples per pixel as MONOCHROME2"),
        ("RescaleSlope", "1e300", "rescale slope"),
        ("PixelSpacing", [0, 0.9], "pixel spacing is 0×0.9"),
    ],
)
def test_a_header_that_contradicts_the_data_is_refused(
    tmp_path: Path, keyword: str, value: object, message: str
) -> None:
    path = write_series(tmp_path, numbers()[:1], change=lambda _, data: setattr(data, keyword, value))[0]
    with pytest.raises(InputError, match=message):
        read_image(path)


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big-endian"])
def test_files_without_preamble_and_meta_header_are_read(tmp_path: Path, syntax: str) -> None:
    for path in write_series(tmp_path, numbers()):
        data = pydicom.dcmread(path)
        if syntax == "big-endian":
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        bare = Dataset(data)
        pydicom.dcmwrite(path, bare, implicit_vr=syntax == "implicit", little_endian=syntax != "big-endian")
        assert path.read_bytes()[128:132] != b"DICM"
        assert is_dicom(path)
    np.testing.assert_array_equal(read_image(tmp_path).array[0], numbers())


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = write_series(tmp_path, numbers()[:1])[0]
    save_as(path, DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    meta = 132 + 12 + int.from_bytes(data[140:144], "little")  # (0002,0000) says how long its group is
    press = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(press.compress(bytes(2**24)) for _ in range(20)) + press.flush()
    path.write_bytes(data[:meta] + bomb)
    with pytest.raises(InputError, match="would inflate to more than 256 MiB"):
        read_image(path.rename(tmp_path / "bomb.dcm"))


def test_text_and_other_binary_files_are_no_dicom(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, content in enumerate((b"", b"\x08\x00", b"08 00 05 00", rng.bytes(5000), bytes(5000), b"PK\3\4" * 99)):
        path = tmp_path / str(number)
        path.write_bytes(content)
        assert not is_dicom(path)
    (tmp_path / "text.dcm").write_text("patient list\n" * 20)
    with pytest.raises(InputError, match="not a DICOM file: it does not start as one"):
        read_image(tmp_path / "text.dcm")


def test_compressed_pixels_without_meta_header_are_refused_with_the_cause(tmp_path: Path) -> None:
    path = write_series(tmp_path, numbers()[:1])[0]
    save_as(path, RLELossless)
    pydicom.dcmwrite(path, Dataset(pydicom.dcmread(path)), implicit_vr=False, little_endian=True)
    with pytest.raises(InputError, match="compressed, and no meta header says how"):
        read_image(path)


def test_a_dicomdir_is_no_image(tmp_path: Path) -> None:
    write_series(tmp_path / "disc", numbers())
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.DirectoryRecordSequence = []
    data.save_as(tmp_path / "disc" / "DICOMDIR", enforce_file_format=True)
    np.testing.assert_array_equal(read_image(tmp_path / "disc").array[0], numbers())
    with pytest.raises(InputError, match="a DICOMDIR, a table of contents, not an image"):
        read_image(tmp_path / "disc" / "DICOMDIR")


def test_a_table_of_values_is_applied_as_pydicom_does(tmp_path: Path) -> None:
    def change(_: int, data: Dataset) -> None:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [1500, 100, 16], "US"
        table.LUTData = (np.arange(1500) * 3 + 7).astype("<u2").tobytes()
        data.ModalityLUTSequence = [table]

    write_series(tmp_path / "scan", numbers(), change=change)
    expected = np.clip(numbers().astype(int) - 100, 0, 1499) * 3 + 7
    np.testing.assert_array_equal(read_image(tmp_path / "scan").array[0], expected)


def test_a_frames_own_rescaling_of_0_goes_before_the_objects(tmp_path: Path) -> None:
    def change(z: int, own: Dataset) -> None:
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = str(int(z != 2)), "0"
        own.PixelValueTransformationSequence = [transformation]

    path = tmp_path / "a.dcm"
    enhanced(path, list(range(len(numbers()))), change)
    data = pydicom.dcmread(path)
    data.RescaleSlope, data.RescaleIntercept = "5", "-1024"
    data.save_as(path)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.array[0], numbers())
    assert volume.notes == ("a rescale slope of 0 was taken as 1",)
