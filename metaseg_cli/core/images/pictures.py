"""PNG, JPEG, TIFF and BMP."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metaseg_cli.core.images.volume import Volume
from metaseg_cli.errors import InputError

_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I", "F")


def open_picture(path: Path) -> Image.Image:
    """The decoded picture as it lies in the file. Raises InputError when it is none or is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # Pillow keeps files of several pages, and broken ones, open: what it needs of the file is read here.
            with path.open("rb") as file:
                picture = Image.open(file)
                picture.load()
                picture.info["pages"] = getattr(picture, "n_frames", 1)
                picture.info["orientation"] = int(picture.getexif().get(_ORIENTATION, 1))
    except UnidentifiedImageError:
        raise InputError("not an image, whatever its name says", where=path, remedy="replace or remove it") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"too large a picture ({error})", where=path, remedy="cut it into parts") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"damaged ({error})", where=path, remedy="copy it again from its source") from error
    return picture


def read_picture(path: Path) -> Volume:
    """A picture upright, by its EXIF orientation, as ``(C, Z, Y, X)``; Z counts the pages of a TIFF."""
    picture = open_picture(path)
    orientation = picture.info["orientation"]
    notes: list[str] = []
    if picture.format == "TIFF" and (picture.info["pages"] > 1 or _is_deep_colour(picture)):
        array = _through_tifffile(path)
    else:
        array = _channels(ImageOps.exif_transpose(picture), notes)[:, None]
    return Volume(array=array, spacing_mm=None, source=path, exif_orientation=orientation, notes=tuple(notes))


def _is_deep_colour(picture: Image.Image) -> bool:
    # Pillow reduces 16-bit colour to 8 bits without a word.
    bits = getattr(picture, "tag_v2", {}).get(258, (8,))
    return len(bits) > 1 and max(bits) > 8


def _through_tifffile(path: Path) -> NDArray[Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            array, axes = file.series[0].asarray(), file.series[0].axes
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise InputError(f"damaged ({error})", where=path, remedy="copy it again from its source") from error
    array = np.moveaxis(array, -1, 0)[:3] if axes.endswith("S") else array[None]
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4:
        raise InputError(f"a TIFF with the axes {axes}", where=path, remedy="save it as plain pages")
    return np.ascontiguousarray(array)


def _channels(picture: Image.Image, notes: list[str]) -> NDArray[Any]:
    """``(C, Y, X)``: grey or red, green, blue."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        notes.append("transparency ignored")
        picture = picture.convert("LA" if picture.mode == "LA" else "RGBA").convert(
            "L" if picture.mode == "LA" else "RGB"
        )
    if picture.mode == "P":
        picture = picture.convert("RGB")
        bands = np.asarray(picture)
        if (bands[..., 0] == bands[..., 1]).all() and (bands[..., 1] == bands[..., 2]).all():
            return np.ascontiguousarray(bands[..., 0])[None]
    if picture.mode in _SIXTEEN_BIT:
        return _finite(np.asarray(picture))[None]
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))[None]
    if picture.mode != "RGB":
        notes.append(f"converted from {picture.mode} to RGB")
        picture = picture.convert("RGB")
    return np.ascontiguousarray(np.moveaxis(np.asarray(picture), -1, 0))


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 65536:
        return array.astype(np.uint16)
    return array


def channels_are_equal(volume: Volume) -> bool:
    """Whether a picture in colour is a grey one: channels within 4 of 255 levels on 99.9 % of the pixels."""
    array = volume.array
    if array.shape[0] != 3:
        return array.shape[0] == 1
    tolerance = 4 * (257 if array.dtype == np.uint16 else 1)
    values = array.astype(np.int32) if array.dtype.kind in "ui" else array
    spread = values.max(axis=0) - values.min(axis=0)
    return bool(np.mean(spread <= tolerance) >= 0.999)


def as_grey(volume: Volume) -> Volume:
    """One channel instead of three that are equal; a picture truly in colour stays as it is."""
    if volume.array.shape[0] == 3 and channels_are_equal(volume):
        return dataclasses.replace(volume, array=volume.array[1:2])
    return volume


def raw_orientation(array: NDArray[Any], exif_orientation: int) -> NDArray[Any]:
    """Turn an upright ``(Y, X)`` back to how a file with that EXIF orientation stores it."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(turned[exif_orientation](array)) if exif_orientation in turned else array


def save_picture(path: Path, pages: list[NDArray[Any]], exif_orientation: int) -> None:
    """Write ``(Y, X)`` pages (several only as TIFF), turned back and tagged as the picture they belong to."""
    images = [Image.fromarray(raw_orientation(page, exif_orientation)) for page in pages]
    exif = Image.Exif()
    if exif_orientation != 1:
        exif[_ORIENTATION] = exif_orientation
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP"}.get(path.suffix.lower(), "TIFF")
    options: dict[str, Any] = {"exif": exif} if exif_orientation != 1 and kind != "BMP" else {}
    if kind == "JPEG":
        options |= {"quality": 100, "subsampling": 0}
    if kind == "TIFF":
        options |= {"compression": "tiff_deflate"}
        if len(images) > 1:
            options |= {"save_all": True, "append_images": images[1:]}
    images[0].save(path, format=kind, **options)
