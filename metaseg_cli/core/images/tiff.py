"""Read TIFF: pages, stacks and hyperstacks with tifffile; with Pillow where tifffile lacks the decompressor."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from metaseg_cli.core.images import tiff_directories as tags
from metaseg_cli.core.images.picture import Picture, damaged, raw_orientation, upright
from metaseg_cli.core.images.tiff_directories import Directory, alike, is_main, number, read_directories
from metaseg_cli.core.images.tiff_lzw import lzw_decode
from metaseg_cli.errors import InputError, decoding

if TYPE_CHECKING:
    import tifffile

_NONE, _LZW, _DEFLATE = 1, 5, (8, 32946)
_LOSSLESS = (_NONE, 2, 3, 4, _LZW, *_DEFLATE, 32773, 34925, 50000)  # also fax codes, PackBits, LZMA, Zstandard
_DEFLATE_RATIO = 1032  # the largest that deflate can reach
_LARGE = 2**29  # bytes; what would become larger than this must be large in the file too
_LARGE_RATIO = 100  # a large image is at most this many times its file
_SLICES, _CHANNELS = "ZTQI", "CS"
_STANDARD_ERROR = threading.Lock()
_ALPHA = (1, 2)  # of the tag ExtraSamples; 0 says nothing of its meaning
_PHOTOMETRICS = (tags.MIN_IS_WHITE, tags.MIN_IS_BLACK, tags.RGB, tags.PALETTE, tags.CMYK, tags.YCBCR)
_KEPT_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")


def read_tiff(path: Path) -> Picture:
    """Return all pages of a TIFF as ``(C, Z, Y, X)``. Raises InputError for what is damaged or not one stack."""
    directories = read_directories(path)
    notes: list[str] = []
    pages = [i for i, directory in enumerate(directories) if is_main(directory)] or list(range(len(directories)))
    if len(pages) < len(directories):
        notes.append(f"{len(directories) - len(pages)} reduced page(s) (thumbnails) left out")
    first = directories[pages[0]]
    for page in pages:
        if not alike(directories[page], first):
            raise InputError(
                f"its pages differ in size or kind (pages {pages[0] + 1} and {page + 1})",
                where=path,
                remedy="keep one stack of slices per file",
            )
    with decoding(path, "damaged"):
        return _read_pages(path, directories, pages, notes)


# -- decoding --------------------------------------------------------------------------------------------------------


def _read_pages(path: Path, directories: list[Directory], pages: list[int], notes: list[str]) -> Picture:
    """Read *pages*, which have one size and kind, of all those in the file."""
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its warnings are about what is checked here
    first = directories[pages[0]]
    white_is_zero = number(first, tags.PHOTOMETRIC, tags.MIN_IS_BLACK) == tags.MIN_IS_WHITE
    # Other files that an OME-TIFF names are never opened, and no page is assumed to be like the first.
    with tifffile.TiffFile(path, _multifile=False, is_uniform=False) as file:
        if len(file.pages) < len(directories):
            raise damaged(path, "not every page can be read")
        keyframe: Any = file.pages[pages[0]].keyframe
        if not _by_tifffile(keyframe) or (len(directories) == 1 and _is_quicker_by_pillow(keyframe)):
            _check_size(path, keyframe.nbytes * len(pages))
            array = _through_pillow(path, pages, keyframe)
            return _picture(array, first, path, notes, white_is_zero=False)
        series = list(file.series)
        if len(series) == 1 and len(pages) == len(directories):
            array, axes = _series(path, series[0]), series[0].axes
        else:
            array, axes = _pages_one_by_one(path, [file.pages[i] for i in pages], series)
    return _picture(_by_axes(array, axes, path, notes), first, path, notes, white_is_zero=white_is_zero)


def _series(path: Path, series: tifffile.TiffPageSeries) -> NDArray[Any]:
    """Read the only series of a file, with its own axes."""
    _check_size(path, series.nbytes)
    _check_pages(path, list(series.pages))
    if series.dataoffset is not None and series.dataoffset + series.nbytes > path.stat().st_size:
        raise damaged(path, "the file ends too early")
    return series.asarray(maxworkers=1)


def _pages_one_by_one(path: Path, pages: list[Any], series: list[tifffile.TiffPageSeries]) -> tuple[NDArray[Any], str]:
    """Read pages that were appended to a file, each a series of its own to tifffile, as slices."""
    for each in series:
        in_pages = sum(math.prod(page.shape) for page in each.pages if page is not None)
        if set(each.axes) <= set("QIZTYXS") and math.prod(each.shape) <= in_pages:
            continue
        raise InputError("several stacks in one TIFF", where=path, remedy="save each in its own file")
    _check_size(path, sum(page.nbytes for page in pages))
    _check_pages(path, pages)
    return np.stack([page.asarray(maxworkers=1) for page in pages]), "I" + pages[0].axes


def _by_tifffile(page: Any) -> bool:
    """Return whether tifffile can decode the page; without the package imagecodecs it knows fewer kinds."""
    from tifffile import TIFF

    codecs: Any = TIFF.DECOMPRESSORS
    if page.compression == _LZW and _LZW not in codecs:
        codecs._codecs[_LZW] = lzw_decode
    return (
        page.bitspersample in (1, 8, 16, 32, 64)
        and page.photometric != tags.CMYK
        and (page.photometric != tags.YCBCR or page.compression != _NONE)
        and (page.compression == _NONE or page.compression in codecs)
        and (page.predictor == 1 or page.predictor in TIFF.UNPREDICTORS)
    )


def _is_quicker_by_pillow(page: Any) -> bool:
    """Return whether the page is a plain picture in LZW: the decoder here takes 40 times as long as Pillow."""
    plain = page.photometric in (tags.MIN_IS_BLACK, tags.RGB) and not page.extrasamples
    return page.compression == _LZW and page.bitspersample == 8 and plain and page.dtype == "uint8"


def _check_pages(path: Path, pages: list[Any]) -> None:
    """Check that every page has all its strips, in full length. Raises InputError."""
    for page in pages:
        if page is None:
            raise InputError(
                "some of its pages are in other files", where=path, remedy="save it as a single file with all pages"
            )
        frame = page.keyframe
        raw = math.prod(frame.shape) * frame.bitspersample // 8
        if len(page.dataoffsets) < math.prod(frame.chunked):
            raise damaged(path, "strips are missing")
        if frame.compression == _NONE and sum(page.databytecounts) < raw:
            raise damaged(path, "its strips are too short")
        if frame.compression in _DEFLATE:
            _check_deflate(path, page, raw)


def _check_deflate(path: Path, page: Any, raw: int) -> None:
    """Check that no strip inflates to far more than the whole page. Raises InputError."""
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if length * _DEFLATE_RATIO <= max(_LARGE, 2 * raw):
            continue
        with path.open("rb") as file:
            file.seek(start)
            data, inflate, count = file.read(length), zlib.decompressobj(), 0
        while data and not inflate.eof:
            count += len(inflate.decompress(data, 1 << 20))
            data = inflate.unconsumed_tail
            if count > max(_LARGE, 2 * raw):
                raise damaged(path, "a strip holds more than its page")


def _check_size(path: Path, promised: int) -> None:
    """Check that *promised* bytes are in proportion to the file. Raises InputError."""
    size = path.stat().st_size
    if promised > size * _DEFLATE_RATIO * 2 or (promised > _LARGE and promised > _LARGE_RATIO * size):
        raise InputError(
            f"its header promises {promised / 1e6:,.0f} MB, the whole file has {size / 1e6:,.3f} MB",
            where=path,
            remedy="copy it again from its source, or save it uncompressed",
        )


def _through_pillow(path: Path, pages: list[int], page: Any) -> NDArray[Any]:
    """Read ``(C, Z, Y, X)`` of pages that Pillow decodes without loss: up to 8 bits, and grey ones of 12."""
    bits = page.bitspersample
    arrays = []
    if isinstance(bits, int) and (bits <= 8 or bits == 12) and page.photometric in _PHOTOMETRICS:
        with _messages_of_libtiff() as said, TiffImageFile(path) as picture:
            for number_of_page in pages:
                picture.seek(number_of_page)
                stored = picture.tag_v2.get(tags.ORIENTATION, 1)
                picture.load()
                kept = picture if picture.mode in _KEPT_MODES else picture.convert("RGB")
                array = np.moveaxis(np.atleast_3d(np.asarray(kept)), -1, 0)
                if kept.mode == "L" and bits < 8:
                    array = array // (255 // (2**bits - 1))  # Pillow spreads them over 8 bits
                if picture.tag_v2.get(tags.ORIENTATION, 1) != stored:
                    array = raw_orientation(array, stored)  # Pillow has turned it; all kinds are turned below
                arrays.append(array)
        if said:
            raise damaged(path, said[0])
    if not arrays:
        kind = f"{bits} bits, {_name(page.photometric)}, compression {_name(page.compression)}"
        raise InputError(
            f"a kind of TIFF that metaseg cannot read ({kind})",
            where=path,
            remedy="save it uncompressed, in 8 or 16 bits",
        )
    return np.stack(arrays, axis=1)


@contextlib.contextmanager
def _messages_of_libtiff() -> Iterator[list[str]]:
    """Catch libtiff's errors, which it prints and Pillow does not see: fax codes would silently become wrong pixels."""
    said: list[str] = []
    with _STANDARD_ERROR, tempfile.TemporaryFile() as caught:
        try:
            kept = os.dup(2)
        except OSError:  # a program without a terminal may have closed it
            yield said
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines()
            said += [line for line in lines if re.match(r"\w*(TIFF|Fax|LZW|JPEG|Decode|Pack|Zip)\w*:", line)]


def _name(value: object) -> str:
    return str(getattr(value, "name", value))


# -- meaning ---------------------------------------------------------------------------------------------------------


def _by_axes(array: NDArray[Any], axes: str, path: Path, notes: list[str]) -> NDArray[Any]:
    """Transpose an array with tifffile's *axes* to ``(C, Z, Y, X)``: samples or channels, and one axis of slices."""
    long = [i for i, name in enumerate(axes) if array.shape[i] > 1 or name in "YX"]
    array, names = array.reshape([array.shape[i] for i in long]), "".join(axes[i] for i in long)
    channels, slices = [n for n in names if n in _CHANNELS], [n for n in names if n in _SLICES]
    if len(channels) > 1 or len(slices) > 1 or len(names) != len(channels) + len(slices) + 2 or "YX" not in names:
        raise InputError(
            f"its axes, {names} ({'×'.join(map(str, array.shape))}), are not those of one stack of slices",
            where=path,
            remedy="save one stack in a file",
        )
    if slices == ["T"]:
        notes.append("its time points were read as slices")
    if channels == ["C"]:
        notes.append(f"its {array.shape[names.index('C')]} channels (axis C) were read as colours, not as slices")
    order = [names.index(n) for n in (*channels, *slices, "Y", "X")]
    array = array.transpose(order)
    return np.expand_dims(array, [i for i, there in enumerate((channels, slices)) if not there])


def _picture(
    array: NDArray[Any], directory: Directory, path: Path, notes: list[str], *, white_is_zero: bool
) -> Picture:
    """Interpret the numbers by the page's tags."""
    photometric, bits = number(directory, tags.PHOTOMETRIC, tags.MIN_IS_BLACK), number(directory, tags.BITS, 1)
    array = _plain(array, path)
    if photometric not in _PHOTOMETRICS:
        raise InputError(
            f"its colours are of a kind that metaseg does not read (photometric {photometric})",
            where=path,
            remedy="save it in grey or RGB",
        )
    palette = None
    if photometric == tags.PALETTE:
        palette = _palette(array, directory.get(tags.COLORMAP, ()), path)
    if white_is_zero:
        array = _inverted(array, bits, path)
        notes.append("0 is white in it (MinIsWhite): inverted")
    if photometric == tags.CMYK:
        notes.append("converted from CMYK to RGB")
    alpha = None
    extra = directory.get(tags.EXTRA_SAMPLES, ())
    samples = array.shape[0] if number(directory, tags.SAMPLES, 1) > 1 else 1
    colours = 3 if photometric in (tags.RGB, tags.YCBCR) else samples - (bool(extra) and extra[-1] in _ALPHA)
    if samples > colours > 0:
        alpha, array = array[colours], array[:colours]
        if samples > colours + 1:
            notes.append(f"{samples - colours - 1} extra channel(s) ignored")
    orientation = number(directory, tags.ORIENTATION, 1)
    return Picture(
        array=upright(np.ascontiguousarray(array), orientation),
        palette=palette,
        alpha=None if alpha is None else upright(alpha, orientation),
        bits=bits if bits < 8 else 0,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        lossy=number(directory, tags.COMPRESSION, _NONE) not in _LOSSLESS,
        notes=tuple(notes),
    )


def _plain(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Convert to a type that numpy calculates with, in this machine's byte order."""
    if array.dtype.kind == "c":
        raise InputError("its numbers are complex", where=path, remedy="save their magnitude")
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _inverted(array: NDArray[Any], bits: int, path: Path) -> NDArray[Any]:
    if array.dtype.kind != "u":
        raise InputError(
            f"0 is white in it (MinIsWhite), which has no meaning for {array.dtype} numbers",
            where=path,
            remedy="save it with 0 as black (MinIsBlack)",
        )
    return array.dtype.type(2**bits - 1) - array


def _palette(array: NDArray[Any], colormap: tuple[int, ...] | bytes, path: Path) -> NDArray[np.uint8]:
    """Return the palette ``(N, 3)``; the colours of a TIFF have 16 bits, of which some writers fill only 8."""
    if len(array) != 1 or array.dtype.kind != "u" or len(colormap) % 3 or 3 * int(array.max()) >= len(colormap):
        raise damaged(path, "its palette lacks colours")
    colours = np.array(colormap).reshape(3, -1).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
