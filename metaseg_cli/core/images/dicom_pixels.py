"""The pixels of a DICOM data set as numbers, checked against its header.

pydicom decodes what is uncompressed or RLE, GDCM (through ITK) the JPEG family. Single images and multi-frame objects
of every syntax give the same: unused bits removed, palettes applied, and MONOCHROME1 inverted, so that bright is high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.atomic import temporary_folder
from metaseg_cli.core.dicom import quiet, text_of
from metaseg_cli.core.images.itk_decoder import decode
from metaseg_cli.errors import COPY_AGAIN, InputError, decoding

_BY_PYDICOM = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    "1.2.840.10008.1.2.5",  # RLE
)
_RLE = "1.2.840.10008.1.2.5"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_MOST_BYTES = 2**33  # of pixels: more than any series holds
_RLE_RATIO = 64  # PackBits: two bytes become 128 at most
_JPEG_RATIO, _SMALL_BYTES = 1000, 2**28  # a higher ratio is accepted for small images only
_AGAIN = "export it again"


@dataclass(frozen=True)
class PixelFormat:
    """What the header says about the pixels."""

    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    photometric: str
    floating: bool

    @property
    def bits(self) -> int:
        """The bits of all frames, without padding. YBR_FULL_422 halves its colours."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * self.frames * samples * self.allocated


def pixel_format(data: Any, path: Path) -> PixelFormat:
    """Return the image pixel module of *data*. Raises InputError for contradictions."""
    with decoding(path, "its header is damaged"), quiet():
        floating = "FloatPixelData" in data or "DoubleFloatPixelData" in data
        allocated = int(data.BitsAllocated)
        form = PixelFormat(
            rows=int(data.Rows),
            columns=int(data.Columns),
            frames=int(data.get("NumberOfFrames") or 1),
            samples=int(data.get("SamplesPerPixel") or 1),
            allocated=allocated,
            stored=allocated if floating else int(data.get("BitsStored") or allocated),
            signed=bool(int(data.get("PixelRepresentation") or 0)),
            photometric=text_of(data, "PhotometricInterpretation") or "MONOCHROME2",
            floating=floating,
        )
        high = form.stored - 1 if floating else int(data.get("HighBit") or form.stored - 1)
    known = {1: (*_GREY, "PALETTE COLOR"), 3: _COLOUR}.get(form.samples, ())
    if form.photometric not in known:
        what = f"{form.samples} samples per pixel as {form.photometric or 'nothing'}"
    elif min(form.rows, form.columns, form.frames) < 1:
        what = f"a size of {form.columns}×{form.rows}, {form.frames} frames"
    elif form.allocated not in (1, 8, 16, 32, 64) or not 1 <= form.stored <= form.allocated:
        what = f"{form.stored} of {form.allocated} bits"
    elif high != form.stored - 1:
        what = f"{form.stored} bits up to bit {high}, which the standard does not allow"
    elif form.bits // 8 > _MOST_BYTES:
        what = f"{form.bits / 8 / 2**30:.0f} GiB of pixels"
    else:
        return form
    raise InputError(f"its header promises {what}", where=path, remedy=_AGAIN)


def stored_frames(data: Any, path: Path) -> NDArray[Any]:
    """Return all frames ``(N, C, Y, X)`` as stored, before any rescaling. Raises InputError for incomplete pixels."""
    form = pixel_format(data, path)
    with decoding(path, "its pixels cannot be decoded", remedy=_AGAIN), quiet():
        syntax = str(data.file_meta.TransferSyntaxUID)
        if syntax in _BY_PYDICOM:
            _check_length(data, form, path, syntax)
            frames = np.asarray(data.pixel_array)
        else:
            frames = _decode_by_gdcm(data, form, _coded_frames(data, form, path), path)
        size = form.rows * form.columns * form.frames * form.samples
        if frames.size != size:
            raise InputError(f"it holds {frames.size} numbers instead of {size}", where=path, remedy=_AGAIN)
        frames = frames.reshape(form.frames, form.rows, form.columns, form.samples)
        frames = _clean_frames(frames, data, form)
    return np.ascontiguousarray(np.moveaxis(frames, -1, 1))


def rescale(frames: NDArray[Any], slopes: Sequence[float], intercepts: Sequence[float]) -> NDArray[Any]:
    """Rescale frames ``(N, …)`` to the numbers that the scanner means: one slope and intercept for each."""
    if all(s == 1 for s in slopes) and not any(intercepts):
        return frames
    ends = (len(frames),) + (1,) * (frames.ndim - 1)
    slope, intercept = (np.array(v, dtype=np.float64).reshape(ends) for v in (slopes, intercepts))
    return (frames * slope + intercept).astype(np.float32)


def apply_modality_table(frames: NDArray[Any], data: Any) -> NDArray[Any]:
    """Convert frames to the scanner's numbers where a table (Modality LUT) gives them instead of a slope."""
    from pydicom.pixels.processing import apply_modality_lut

    return np.asarray(apply_modality_lut(frames, data))


def _clean_frames(frames: NDArray[Any], data: Any, form: PixelFormat) -> NDArray[Any]:
    """Remove unused bits from ``(N, Y, X, C)``, apply its palette, and make bright high."""
    from pydicom.pixels.processing import apply_color_lut

    frames = frames.astype(frames.dtype.newbyteorder("="), copy=False)
    if form.floating or form.allocated == 1:
        return -frames if form.photometric == "MONOCHROME1" and form.floating else frames
    spare = form.allocated - form.stored
    if spare:  # old files keep overlays there; the shift down again also restores the sign
        kind = np.dtype(f"{'i' if form.signed else 'u'}{frames.dtype.itemsize}")
        frames = (frames.view(kind) << spare) >> spare
    if form.photometric == "MONOCHROME1":
        top = -1 if form.signed else 2**form.stored - 1
        frames = (top - frames.astype(np.int64)).astype(frames.dtype)
    if form.photometric == "PALETTE COLOR":
        colours = apply_color_lut(frames[..., 0], data)
        return (colours >> 8).astype(np.uint8) if form.allocated == 8 and colours.dtype == np.uint16 else colours
    return frames


def _check_length(data: Any, form: PixelFormat, path: Path, syntax: str) -> None:
    """Check that there are as many bytes as announced: pydicom does too, but accepts surplus rows."""
    keyword = next((k for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in data), None)
    value = data[keyword].value if keyword else None
    if not value:
        raise InputError("it holds no pixels", where=path, remedy=_AGAIN)
    wanted = (form.bits + 7) // 8
    if syntax == _RLE:
        found = len(_fragments(data))
        if found != form.frames:
            raise InputError(f"it holds {found} of {form.frames} frames", where=path, remedy=_AGAIN)
        if wanted > _RLE_RATIO * len(value):
            raise InputError("it holds fewer pixels than its header promises", where=path, remedy=_AGAIN)
        return
    row = max(1, form.columns * form.samples * form.allocated // 8)
    spare = len(value) - wanted
    if spare < 0 or spare > max(1, row - 1) or (spare > 1 and any(value[wanted:])):
        raise InputError(
            f"the number of bytes of pixel data is {'less' if spare < 0 else 'more'} than expected "
            f"({len(value)}, the header promises {wanted})",
            where=path,
            remedy=COPY_AGAIN,
        )


# -- the JPEG family -------------------------------------------------------------------------------------------------


def _fragments(data: Any) -> list[bytes]:
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    value = data.PixelData
    start = 4 * len(parse_basic_offsets(value)) + 8
    return list(generate_fragments(value[start:]))


def _coded_frames(data: Any, form: PixelFormat, path: Path) -> list[bytes]:
    """Return one code stream per frame, each with its end marker and the announced size. Raises InputError."""
    from pydicom.encaps import generate_frames

    fragments = _fragments(data)
    if len(fragments) < form.frames:
        raise InputError(f"it holds {len(fragments)} of {form.frames} frames", where=path, remedy=_AGAIN)
    offsets = data.get("ExtendedOffsetTable"), data.get("ExtendedOffsetTableLengths")
    extended = None if None in offsets else offsets
    frames = list(generate_frames(data.PixelData, number_of_frames=form.frames, extended_offsets=extended))
    if len(frames) != form.frames or sum(map(len, frames)) < sum(map(len, fragments)):
        raise InputError(f"it holds {len(frames)} of {form.frames} frames", where=path, remedy=_AGAIN)
    if form.bits // 8 > max(_SMALL_BYTES, _JPEG_RATIO * len(data.PixelData)):
        raise InputError(f"it promises {form.bits / 8 / 2**30:.1f} GiB of pixels", where=path, remedy=_AGAIN)
    for number, frame in enumerate(frames, start=1):
        if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
            raise InputError(
                f"compressed frame {number} is cut off before its end marker",
                where=path,
                remedy=COPY_AGAIN,
            )
        size = _coded_size(frame)
        if size is not None and size != (form.rows, form.columns):
            raise InputError(
                f"compressed frame {number} has {size[1]}×{size[0]} pixels, the header promises "
                f"{form.columns}×{form.rows}",
                where=path,
                remedy=_AGAIN,
            )
    return frames


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 code stream; None for anything else."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        x1, y1, x0, y0 = (int.from_bytes(frame[i : i + 4], "big") for i in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xFF:
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        else:
            at += 2 + length
    return None


def _decode_by_gdcm(data: Any, form: PixelFormat, frames: Sequence[bytes], path: Path) -> NDArray[Any]:
    """Decode frames with GDCM from a file that holds nothing else, so that it rescales and inverts nothing."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import MRImageStorage, generate_uid

    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    bare.SOPClassUID = bare.file_meta.MediaStorageSOPClassUID = MRImageStorage
    bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    bare.Rows, bare.Columns, bare.SamplesPerPixel = form.rows, form.columns, form.samples
    bare.NumberOfFrames = len(frames)
    bare.BitsAllocated, bare.BitsStored, bare.HighBit = form.allocated, form.stored, form.stored - 1
    bare.PixelRepresentation = int(form.signed)
    bare.PhotometricInterpretation = "MONOCHROME2" if form.samples == 1 else form.photometric
    if form.samples > 1:
        bare.PlanarConfiguration = int(data.get("PlanarConfiguration") or 0)
    bare.PixelData = encapsulate(list(frames))
    bare["PixelData"].is_undefined_length = True
    bare["PixelData"].VR = "OB"
    with temporary_folder("dicom") as folder:
        alone = folder / path.name
        bare.save_as(alone, enforce_file_format=True)
        array, components = _decode_by_itk(alone)
    if components != form.samples:
        raise InputError(f"it decodes to {components} samples per pixel", where=path, remedy=_AGAIN)
    return array


def _decode_by_itk(path: Path) -> tuple[NDArray[Any], int]:
    """Return a file's pixels as ITK decodes them, and the numbers per pixel."""
    try:
        image = decode(path, "GDCMImageIO")
    except InputError as error:  # of a temporary file, which no message must name
        raise ValueError(error.what) from error
    return image.array, image.components
