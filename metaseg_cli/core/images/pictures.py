"""PNG, JPEG, TIFF, BMP, WebP and GIF."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from metaseg_cli.core.images import png
from metaseg_cli.core.images.jpeg import is_jpeg, load_jpeg
from metaseg_cli.core.images.picture import Picture, check_size, damaged, raw_orientation, upright
from metaseg_cli.core.images.tiff import read_tiff
from metaseg_cli.core.images.tiff_directories import is_tiff
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError, decoding

_ORIENTATION = 0x0112  # the EXIF tag
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # only these: for some others Pillow starts programs
_NUMBERS = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I", "F")


def read_picture(path: Path) -> Volume:
    """Read a picture, turned upright by its EXIF orientation, as ``(C, Z, Y, X)``; Z counts the pages of a TIFF.

    Raises InputError when it is not a picture, is damaged or truncated, or holds numbers that are not finite.
    """
    picture = decode_picture(path)
    notes = list(picture.notes)
    if picture.alpha is not None and picture.alpha.min() != picture.alpha.max():
        notes.append("transparency ignored")
    array = picture.colours()
    if picture.palette is not None and (array == array[:1]).all():
        array = array[:1]
    if picture.palette is None and picture.bits:
        array = array * np.uint8(255 // (2**picture.bits - 1))
    return Volume(array=array, spacing_mm=None, source=path, exif_orientation=picture.orientation, notes=tuple(notes))


def decode_picture(path: Path) -> Picture:
    """Decode a picture file, whatever its suffix claims. Raises InputError."""
    with path.open("rb") as file:
        start = file.read(16)
    picture = read_tiff(path) if is_tiff(start) else _through_pillow(path, start)
    if not picture.array.size:
        raise damaged(path, "it has no pixels")
    if picture.array.dtype.kind == "f" and not np.isfinite(picture.array).all():
        raise InputError("it holds values that are not finite", where=path, remedy="replace them, or remove it")
    return picture


def _through_pillow(path: Path, start: bytes) -> Picture:
    header = None
    with decoding(path, "damaged"):
        if start.startswith(png.SIGNATURE):
            header = png.check_png(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs (larger ones are errors), of EXIF that cannot be read
            try:
                with Image.open(path, formats=_FORMATS) as opened:
                    check_size(opened.width, opened.height, path)
                    load_jpeg(opened, path) if is_jpeg(start) else opened.load()
                    return _decoded(opened, path, header)
            except UnidentifiedImageError:
                raise InputError(
                    "not an image, whatever its name says", where=path, remedy="replace or remove it"
                ) from None
            except Image.DecompressionBombError as error:
                raise InputError(f"too large a picture ({error})", where=path, remedy="cut it into parts") from error


def _decoded(opened: Image.Image, path: Path, header: png.PngHeader | None) -> Picture:
    notes: list[str] = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1 and opened.format == "MPO":
        notes.append(f"it holds {frames} pictures: the first was read")
    elif frames > 1:
        raise InputError(
            f"an animation of {frames} frames",
            where=path,
            remedy="save its frames as the pages of a TIFF, or one by one",
        )
    orientation = int(opened.getexif().get(_ORIENTATION, 1))
    orientation = orientation if 1 <= orientation <= 8 else 1
    bits = header.depth if header is not None and header.colour == png.GREY and header.depth < 8 else 0
    bits = 1 if opened.mode == "1" else bits
    palette = None
    if opened.mode == "P":
        table = np.array(opened.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        palette = np.concatenate([table, np.zeros((256 - len(table), 3), np.uint8)])  # others are black
    samples = _samples(opened, path, header, bits, notes)
    samples, alpha = _without_alpha(samples, opened, bits)
    array = np.ascontiguousarray(np.moveaxis(samples, -1, 0))[:, None]
    return Picture(
        array=upright(array, orientation),
        palette=palette,
        alpha=None if alpha is None else upright(alpha[None], orientation),
        bits=bits,
        orientation=orientation,
        lossy=opened.format in ("JPEG", "MPO") or (opened.format == "WEBP" and b"VP8L" not in path.read_bytes()[:4096]),
        notes=tuple(notes),
    )


def _samples(
    opened: Image.Image, path: Path, header: png.PngHeader | None, bits: int, notes: list[str]
) -> NDArray[Any]:
    """Return ``(Y, X, samples)``: grey or palette index, or red, green and blue; then opacity."""
    if header is not None and header.depth == 16 and header.colour != png.GREY:
        return png.read_sixteen_bits(path, header)
    if opened.mode in _NUMBERS:
        array = np.asarray(opened)
        if bits > 1:
            array = array // np.uint8(255 // (2**bits - 1))  # Pillow spreads them over 8 bits
        if array.dtype == np.int32 and array.min() >= 0 and array.max() < 65536:
            array = array.astype(np.uint16)
        return array.astype(np.uint8)[..., None] if array.dtype == bool else array[..., None]
    if opened.mode in ("PA", "LA", "RGB", "RGBA"):
        return np.asarray(opened.convert("RGBA") if opened.mode == "PA" else opened).copy()
    notes.append(f"converted from {opened.mode} to RGB")
    return np.asarray(opened.convert("RGB"))


def _without_alpha(samples: NDArray[Any], opened: Image.Image, bits: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Separate colours from opacity: a channel of its own, or one value that is transparent."""
    channels = samples.shape[-1]
    if channels in (2, 4):
        return samples[..., :-1], samples[..., -1]
    transparent = opened.info.get("transparency")
    if transparent is None:
        return samples, None
    if isinstance(transparent, bytes):  # the opacity of each colour of a palette
        table = np.full(256, 255, np.uint8)
        table[: len(transparent)] = np.frombuffer(transparent, np.uint8)
        return samples, table[samples[..., 0]]
    if bits == 1:
        transparent = bool(transparent)
    return samples, np.where((samples == np.array(transparent)).all(axis=-1), 0, 255).astype(np.uint8)


def channels_are_equal(volume: Volume) -> bool:
    """Return whether a picture in colour is a grey one: channels within 4/255 of its range on 99.9 % of the pixels."""
    array = volume.array
    if array.shape[0] != 3:
        return array.shape[0] == 1
    values = array.astype(np.int16 if array.dtype == np.uint8 else np.float64)
    tolerance = 4 if array.dtype == np.uint8 else 4 / 255 * float(values.max() - values.min())
    spread = values.max(axis=0) - values.min(axis=0)
    return bool(np.mean(spread <= tolerance) >= 0.999)


def as_grey(volume: Volume) -> Volume:
    """Reduce three equal channels to one; a picture truly in colour stays as it is."""
    if volume.array.shape[0] == 3 and channels_are_equal(volume):
        return dataclasses.replace(volume, array=volume.array[1:2])
    return volume


def save_picture(path: Path, pages: list[NDArray[Any]], exif_orientation: int) -> None:
    """Write ``(Y, X)`` pages (several only as TIFF), turned back and tagged as the picture they belong to.

    Raises InputError for a format other than PNG, TIFF, BMP and JPEG.
    """
    suffix = path.suffix.lower()
    raw = [raw_orientation(page, exif_orientation) for page in pages]
    if suffix in (".tif", ".tiff"):
        _save_tiff(path, np.stack(raw), exif_orientation)
        return
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP"}.get(suffix)
    if kind is None:
        raise InputError(
            f"masks are not written as {suffix[1:] or 'files without suffix'}", where=path, remedy="use PNG"
        )
    if len(raw) > 1:
        raise InputError(f"{kind} holds one page, not {len(raw)}", where=path, remedy="use TIFF")
    exif = Image.Exif()
    exif[_ORIENTATION] = exif_orientation
    options: dict[str, Any] = {"exif": exif} if exif_orientation != 1 and kind != "BMP" else {}
    if kind == "JPEG":
        options |= {"quality": 100, "subsampling": 0}
    encoded = io.BytesIO()  # Pillow writes half a BMP on a full disk without an error
    Image.fromarray(raw[0]).save(encoded, format=kind, **options)
    path.write_bytes(encoded.getbuffer())


def _save_tiff(path: Path, pages: NDArray[Any], exif_orientation: int) -> None:
    import tifffile

    tag = [(_ORIENTATION, 3, 1, exif_orientation, False)] if exif_orientation != 1 else []
    tifffile.imwrite(path, pages, photometric="minisblack", compression="zlib", metadata=None, extratags=tag)
