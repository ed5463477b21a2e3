"""Pictures of lesions over visits: the same number and colour for a lesion at every visit."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metaseg_cli.core.atomic import atomic_write_bytes
from metaseg_cli.core.follow_up import FollowUpResult
from metaseg_cli.core.inference.visit_lesions import VisitLesions
from metaseg_cli.reports.figures import contrast, outline, overlay, to_rgb
from metaseg_cli.reports.lesion_colours import lesion_colour

Rgb = NDArray[np.uint8]
_TILE = 360  # pixels of a slice
_MOST_SLICES = 12
_THUMBNAIL, _FIELD_MM = 150, 45.0  # pixels and millimetres of a thumbnail
_MOST_THUMBNAILS = 10  # lesions; the rest is in the table
_BACKGROUND = (16, 18, 22)


def save_visit(path: Path, visit: VisitLesions, result: FollowUpResult, v: int) -> None:
    """Write the slices that show the lesions of visit *v* best, each lesion outlined in its colour and numbered."""
    owners = _owners(result, v)
    depth = visit.numbers.shape[0]
    largest = sorted(range(len(visit.detections)), key=lambda i: -visit.detections[i].volume_mm3)
    slices = sorted({visit.slices[i] for i in largest[:_MOST_SLICES]}) or [depth // 2]
    limits = None if visit.image is None else contrast(visit.image[:, slices])
    tiles = [_slice(visit, z, owners, limits) for z in slices]
    columns = min(4, len(tiles))
    height, width = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    sheet = np.full((-(-len(tiles) // columns) * (height + 4), columns * (width + 4), 3), _BACKGROUND, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (height + 4), i % columns * (width + 4)
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    atomic_write_bytes(path, _png(sheet))


def thumbnails(visits: Sequence[VisitLesions], result: FollowUpResult) -> Mapping[tuple[int, int], bytes]:
    """Return a PNG for the first lesions by lesion number and visit (from 0): the lesion, or its place once it is gone.

    Targets come first, then the others by their largest diameter. A visit before the first that shows it has none.
    """
    order = sorted(result.lesions, key=lambda x: (not x.target, -max(a.longest_mm for a in x.at_visits), x.number))
    pictures = {}
    limits = [None if visit.image is None else contrast(visit.image) for visit in visits]
    for lesion in order[:_MOST_THUMBNAILS]:
        for v in range(len(visits)):
            at_visit = lesion.at_visits[v]
            if at_visit.parts:
                part = max(at_visit.parts, key=lambda n: visits[v].detections[n - 1].volume_mm3)
                centre = np.argwhere(visits[v].numbers == part).mean(axis=0)
                zyx = (visits[v].slices[part - 1], float(centre[1]), float(centre[2]))
            else:
                place = np.linalg.inv(visits[v].affine) @ [*lesion.centre_mm, 1.0]
                zyx = (round(place[2]), float(place[1]), float(place[0]))
            if 0 <= zyx[0] < visits[v].numbers.shape[0]:
                pictures[lesion.number, v] = _png(_crop(visits[v], zyx, _owners(result, v), limits[v]))
    return pictures


def _owners(result: FollowUpResult, v: int) -> dict[int, int]:
    """Return detection number → lesion number at visit *v*."""
    return {part: lesion.number for lesion in result.lesions for part in lesion.at_visits[v].parts}


def _slice(visit: VisitLesions, z: int, owners: Mapping[int, int], limits: tuple[float, float] | None) -> Rgb:
    """Draw slice *z* at the size that it has in the patient, with a scale bar, sides and the number of the slice."""
    _, height, width = visit.numbers.shape
    _, y_mm, x_mm = visit.spacing_mm
    scale = _TILE / max(height * y_mm, width * x_mm)
    picture = Image.fromarray(
        _outlined(visit, z, owners, limits, (round(height * y_mm * scale), round(width * x_mm * scale)))
    )
    draw = ImageDraw.Draw(picture)
    for number, lesion in owners.items():
        place = np.argwhere(visit.numbers[z] == number)
        if len(place):
            y, x = place.mean(axis=0)
            reach = (np.ptp(place[:, 1]) / 2 + 2) * x_mm * scale + 3
            _label(draw, x * x_mm * scale + reach, y * y_mm * scale - 8, str(lesion), lesion_colour(lesion))
    _label(draw, 4, 4, f"slice {z + 1} of {visit.numbers.shape[0]}", (214, 218, 224), 12)
    _label(draw, 4, picture.height / 2 - 6, "R", (214, 218, 224), 12)
    _label(draw, picture.width - 14, picture.height / 2 - 6, "L", (214, 218, 224), 12)
    _scale_bar(draw, picture.size, 50, scale)
    return np.asarray(picture)


def _crop(
    visit: VisitLesions,
    zyx: tuple[int, float, float],
    owners: Mapping[int, int],
    limits: tuple[float, float] | None,
) -> Rgb:
    """Draw the surroundings of a place, as large at every visit."""
    z, y, x = zyx
    _, y_mm, x_mm = visit.spacing_mm
    _, height, width = visit.numbers.shape
    scale = _THUMBNAIL / _FIELD_MM
    whole = _outlined(visit, z, owners, limits, (round(height * y_mm * scale), round(width * x_mm * scale)))
    padded = np.pad(whole, ((_THUMBNAIL, _THUMBNAIL), (_THUMBNAIL, _THUMBNAIL), (0, 0)))
    top = int(np.clip((y + 0.5) * y_mm * scale + _THUMBNAIL / 2, 0, padded.shape[0] - _THUMBNAIL))
    left = int(np.clip((x + 0.5) * x_mm * scale + _THUMBNAIL / 2, 0, padded.shape[1] - _THUMBNAIL))
    picture = Image.fromarray(padded[top : top + _THUMBNAIL, left : left + _THUMBNAIL])
    _scale_bar(ImageDraw.Draw(picture), picture.size, 10, scale)
    return np.asarray(picture)


def _outlined(
    visit: VisitLesions,
    z: int,
    owners: Mapping[int, int],
    limits: tuple[float, float] | None,
    size: tuple[int, int],
) -> Rgb:
    """Return slice *z* in *size* (rows, columns) with every lesion's outline in its colour."""
    size = (max(1, size[0]), max(1, size[1]))
    shape = (size[1], size[0])
    if visit.image is None:
        rgb = np.full((*size, 3), 40, np.uint8)
    else:
        small = Image.fromarray(to_rgb(np.asarray(visit.image[:, z]), limits))
        rgb = np.array(small.resize(shape, Image.Resampling.BICUBIC))
    for number, lesion in owners.items():
        mask = visit.numbers[z] == number
        if mask.any():
            large = np.asarray(Image.fromarray(mask).resize(shape, Image.Resampling.NEAREST))
            rgb = outline(overlay(rgb, large, lesion_colour(lesion), 0.15), large, lesion_colour(lesion), width=1)
    return rgb


def _label(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: tuple[int, int, int], size: int = 16
) -> None:
    font = ImageFont.load_default(size)
    box = draw.textbbox((x, y), text, font=font)
    draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=_BACKGROUND)
    draw.text((x, y), text, fill=colour, font=font)


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], length_mm: int, scale: float) -> None:
    """Draw a bar of *length_mm* at the lower right; *scale* is in pixels per mm."""
    right, bottom = size[0] - 6, size[1] - 6
    draw.line((right - length_mm * scale, bottom, right, bottom), fill=(255, 255, 255), width=2)
    font = ImageFont.load_default(10)
    draw.text((right, bottom - 3), f"{length_mm} mm", fill=(255, 255, 255), font=font, anchor="rb")


def _png(rgb: Rgb) -> bytes:
    to = io.BytesIO()
    Image.fromarray(rgb).save(to, format="PNG")
    return to.getvalue()
