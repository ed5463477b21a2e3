"""Pictures of a scan with its regions in their colours, and the lesions of one of them numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from metaseg_cli.reports.figures import (
    BACKGROUND,
    TEXT,
    Rgb,
    contrast,
    enlarged,
    font,
    grid,
    outline,
    overlay,
    save_rgb,
    titled,
    to_rgb,
)
from metaseg_cli.reports.region_colours import LESION, Colour

_MIN_WIDTH = 512  # pixels of an overlay's width: an outline on a 128-pixel slice would hide the lesion
_TILE_WIDTH = 320
_MONTAGE = 12  # slices
_LABELS = 20  # numbers in one tile; more would hide the scan
_Point = tuple[int, float, float, float]  # number, row, column, radius in pixels
_BARS_MM = (100, 50, 20, 10, 5, 2, 1)


@dataclass(frozen=True, kw_only=True)
class RegionLayer:
    """One region of a scan: its mask ``(Z, Y, X)`` and its colour."""

    name: str
    colour: Colour
    mask: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class MarkedScan:
    """What is drawn: image ``(C, Z, Y, X)``, regions from the widest to the narrowest, and numbered lesions.

    ``numbers`` ``(Z, Y, X)`` are the lesions of the *numbered* region, largest first. ``axial``: slices are axial with
    the patient's right on the left.
    """

    image: NDArray[Any]
    layers: Sequence[RegionLayer]
    numbers: NDArray[np.int32]
    numbered: str = ""
    spacing_mm: tuple[float, float, float] | None = None
    axial: bool = False
    sequence: str = ""


def save_overlay(path: Path, scan: MarkedScan) -> None:
    """Draw a picture, or of a volume the slice on which each lesion is largest, each slice once."""
    depth = scan.numbers.shape[0]
    shown, rest = ([0], 0) if depth == 1 else best_slices(scan)
    limits = contrast(scan.image[:, shown])  # one for all, so that they can be compared
    width = _MIN_WIDTH if len(shown) == 1 else _TILE_WIDTH
    tiles = [_slice(scan, z, limits, width) for z in shown]
    sheet = tiles[0] if len(tiles) == 1 else grid(tiles, columns=min(4, len(tiles)))
    if depth > 1 or len(scan.layers) > 1:
        sheet = np.concatenate([sheet, _legend(scan, sheet.shape[1], rest)])
    save_rgb(path, sheet)


def best_slices(scan: MarkedScan) -> tuple[list[int], int]:
    """Return on which slices each lesion is largest, without repeats; and how many lesions have none of them.

    Without numbered lesions, the slice with most of any region, else the middle one.
    """
    depth, count = scan.numbers.shape[0], int(scan.numbers.max(initial=0))
    if not count:
        area = np.sum([layer.mask.reshape(depth, -1).sum(axis=1) for layer in scan.layers] or [np.zeros(depth)], axis=0)
        return [int(area.argmax()) if area.any() else depth // 2], 0
    area = np.stack([np.bincount(plane.ravel(), minlength=count + 1)[1:] for plane in scan.numbers])  # (Z, lesions)
    best = area.argmax(axis=0)
    shown = list(dict.fromkeys(best.tolist()))[:_MONTAGE]
    return sorted(shown), int((~np.isin(best, shown)).sum())


def _slice(scan: MarkedScan, z: int, limits: tuple[float, float], width: int) -> Rgb:
    depth = scan.numbers.shape[0]
    masks = [(layer.mask[z], layer.colour) for layer in scan.layers]
    spacing = scan.spacing_mm
    tile = _annotated(
        to_rgb(scan.image[:, z], limits),
        masks,
        _label_points(scan.numbers[z]),
        width,
        sides=("R", "L") if scan.axial else None,
        mm_per_pixel=spacing[2] if spacing else None,
    )
    if depth == 1:
        return tile
    return titled(tile, " · ".join(filter(None, (scan.sequence, f"slice {z + 1} of {depth}"))))


def save_overview(path: Path, scan: MarkedScan) -> None:
    """Draw maximum-intensity projections of an axial volume from above, the front and the side.

    Every voxel is as large as it is in the patient. The largest lesions are numbered, as many as can be read.
    """
    spacing = np.array(scan.spacing_mm or (1.0, 1.0, 1.0))
    volume = scan.numbers.shape
    shape = np.maximum(1, np.round(np.array(volume) * spacing / spacing.min())).astype(int)
    shape *= max(1, -(-_MIN_WIDTH // int(shape[2])))  # all three sides on one scale
    mm_per_pixel = float(spacing[2] * volume[2] / shape[2]) if scan.spacing_mm else None
    sides = [scan.image.max(axis=1 + axis) for axis in range(3)]
    limits = contrast(np.concatenate([side.reshape(len(scan.image), -1) for side in sides], axis=1))
    sizes = np.bincount(scan.numbers.ravel())[1:]
    centres = ndimage.center_of_mass(scan.numbers > 0, scan.numbers, range(1, len(sizes) + 1))
    scale = shape / np.array(volume)
    radii = (sizes * scale.prod() * 3 / (4 * np.pi)) ** (1 / 3)
    tiles = []
    names = (("axial", ("R", "L")), ("coronal", ("R", "L")), ("sagittal", ("A", "P")))
    for axis, (title, ends) in enumerate(names):
        rows, columns = (a for a in range(3) if a != axis)
        size = (int(shape[columns]), int(shape[rows]))
        upside = rows == 0  # slices are stored from the feet up
        planes = sides[axis][:, ::-1] if upside else sides[axis]
        rgb = np.asarray(Image.fromarray(to_rgb(planes, limits)).resize(size, Image.Resampling.BILINEAR))
        masks = []
        for layer in scan.layers:
            flat = np.asarray(layer.mask.any(axis=axis))
            flat = np.ascontiguousarray(flat[::-1] if upside else flat)
            masks.append((np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.NEAREST)), layer.colour))
        points = []
        for number, centre in enumerate(centres[:_LABELS], start=1):
            row = volume[rows] - 1 - centre[rows] if upside else centre[rows]
            y, x = (row + 0.5) * scale[rows] - 0.5, (centre[columns] + 0.5) * scale[columns] - 0.5
            points.append((number, y, x, float(radii[number - 1])))
        tile = _annotated(rgb, masks, points, 1, sides=ends if scan.axial else None, mm_per_pixel=mm_per_pixel)
        tiles.append(titled(tile, " · ".join(filter(None, (scan.sequence, f"{title} projection")))))
    sheet = grid(tiles, columns=3)
    save_rgb(path, np.concatenate([sheet, _legend(scan, sheet.shape[1], max(0, len(centres) - _LABELS))]))


def _label_points(numbers: NDArray[np.int32]) -> list[_Point]:
    """Return the largest lesions of a slice ``(Y, X)``."""
    present, sizes = np.unique(numbers[numbers > 0], return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:_LABELS]
    centres = ndimage.center_of_mass(numbers > 0, numbers, present[largest])
    radii = np.sqrt(sizes[largest] / np.pi)
    return [
        (int(n), float(y), float(x), float(r)) for n, (y, x), r in zip(present[largest], centres, radii, strict=True)
    ]


def _annotated(
    rgb: Rgb,
    masks: Sequence[tuple[NDArray[np.bool_], Colour]],
    points: Sequence[_Point],
    least: int,
    *,
    sides: tuple[str, str] | None,
    mm_per_pixel: float | None,
) -> Rgb:
    """Draw regions, numbers beside lesions, the sides of the patient and a scale bar."""
    marked, _, factor = enlarged(rgb, np.zeros(rgb.shape[:2], bool), least)
    large = [(mask.repeat(factor, axis=0).repeat(factor, axis=1), colour) for mask, colour in masks]
    for mask, colour in large:
        marked = overlay(marked, mask, colour, opacity=0.18)
    for mask, colour in large:
        marked = outline(marked, mask, colour, width=2 if len(large) == 1 else 1)
    picture = Image.fromarray(marked)
    draw = ImageDraw.Draw(picture)
    height, width = marked.shape[:2]
    for number, y, x, radius in points:
        row, column, reach = (y + 0.5) * factor, (x + 0.5) * factor, radius * factor
        left, top = column + reach * 0.7 + 8, row - reach * 0.7 - 24
        _text(draw, (min(max(left, 2), width - 30), min(max(top, 2), height - 24)), str(number), LESION)
    if sides is not None:
        _text(draw, (4, height / 2 - 9), sides[0], TEXT)
        _text(draw, (width - 18, height / 2 - 9), sides[1], TEXT)
    if mm_per_pixel is not None:
        _scale_bar(draw, width, height, mm_per_pixel / factor)
    return np.asarray(picture)


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: Colour) -> None:
    box = draw.textbbox(place, text, font=font(18), anchor="lt")
    draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=BACKGROUND)
    draw.text(place, text, fill=colour, font=font(18), anchor="lt")


def _scale_bar(draw: ImageDraw.ImageDraw, width: int, height: int, mm_per_pixel: float) -> None:
    """Draw the longest round length that takes at most a third of the width, at the bottom right."""
    fitting = [mm for mm in _BARS_MM if mm / mm_per_pixel <= width / 3]
    if not fitting:
        return
    length, right, bottom = fitting[0] / mm_per_pixel, width - 8, height - 8
    draw.rectangle((right - length, bottom - 3, right, bottom), fill=TEXT, outline=BACKGROUND)
    draw.text((right, bottom - 6), f"{fitting[0]} mm", fill=TEXT, font=font(12), anchor="rb")


def _legend(scan: MarkedScan, width: int, rest: int) -> Rgb:
    """Return a strip that names the colours, and what is numbered."""
    numbered = f"numbers: lesions of {scan.numbered}" if scan.numbered else ""
    more = f"and {rest} more in lesions.csv" if rest else ""
    entries = [(layer.name, layer.colour) for layer in scan.layers]
    return legend_strip(entries, ", ".join(filter(None, (numbered, more))), width)


def legend_strip(entries: Sequence[tuple[str, Colour]], text: str, width: int) -> Rgb:
    """Return a strip ``(H, width, 3)`` with a square and a name per colour, then *text*; in as many lines as needed."""
    places: list[tuple[float, int, str, Colour | None]] = []
    x, line = 6.0, 0
    for name, colour in [*entries, *([(text, None)] if text else [])]:
        length = font(12).getlength(name) + (34 if colour else 16)
        if x > 6 and x + length > width:
            x, line = 6.0, line + 1
        places.append((x, 4 + 20 * line, name, colour))
        x += length
    strip = Image.new("RGB", (width, 24 + 20 * line), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for left, top, name, colour in places:
        if colour:
            draw.rectangle((left, top + 1, left + 11, top + 12), fill=colour)
        draw.text((left + (17 if colour else 0), top), name, fill=TEXT, font=font(12))
    return np.asarray(strip)
