"""Pictures from arrays: overlays, contact sheets, worst cases, training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.intensity import DISPLAY_PERCENTILES

Rgb = NDArray[np.uint8]
Colour = tuple[int, int, int]
# Title, image ``(Y, X)`` or ``(C, Y, X)``, reference and prediction ``(Y, X)``.
WorstCasePicture = tuple[str, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]

LESION: Colour = (255, 92, 51)
REFERENCE: Colour = (64, 220, 130)
_BACKGROUND: Colour = (16, 18, 22)
_TEXT: Colour = (214, 218, 224)
_MIN_WIDTH = 512  # pixels of an overlay's width: an outline on a 128-pixel slice would hide the lesion
_MONTAGE = 12


def contrast(image: NDArray[Any]) -> tuple[float, float]:
    """Return what becomes black and white in ``(C, …)``, by percentiles of about half a million values."""
    values = _shown(image).ravel()
    low, high = np.percentile(values[:: max(1, values.size // 500_000)].astype(np.float32), DISPLAY_PERCENTILES)
    return float(low), float(high)


def to_rgb(image: NDArray[Any], limits: tuple[float, float] | None = None) -> Rgb:
    """Convert ``(Y, X)`` or ``(C, Y, X)`` to RGB ``(Y, X, 3)``, stretched between *limits* (default: ``contrast``).

    Three channels are colours; of any other number the first is shown.
    """
    planes = _shown(image[None] if image.ndim == 2 else image)
    low, high = limits or contrast(planes)
    scaled = np.clip((planes.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.ascontiguousarray(np.broadcast_to(np.moveaxis(scaled, 0, -1), (*scaled.shape[1:], 3)).astype(np.uint8))


def _shown(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.shape[0] == 3 else image[:1]


def overlay(rgb: Rgb, mask: NDArray[np.bool_], colour: Colour = LESION, opacity: float = 0.35) -> Rgb:
    """Fill *mask* with *colour* over *rgb* of the same size."""
    result = rgb.copy()
    result[mask] = ((1 - opacity) * rgb[mask] + opacity * np.array(colour, np.float32)).astype(np.uint8)
    return result


def outline(rgb: Rgb, mask: NDArray[np.bool_], colour: Colour = LESION, width: int = 2) -> Rgb:
    """Draw the rim of *mask*, *width* pixels wide, outside it so that the lesion stays visible."""
    if not mask.any():
        return rgb
    sides = (np.flatnonzero(mask.any(axis=1 - axis)) for axis in range(2))
    y, x = (slice(max(0, int(side[0]) - width), int(side[-1]) + width + 1) for side in sides)
    inside = mask[y, x]
    rim = ndimage.binary_dilation(inside, iterations=width, structure=np.ones((3, 3))) & ~inside
    result = rgb.copy()
    result[y, x][rim] = colour
    return result


def enlarged(rgb: Rgb, mask: NDArray[np.bool_], min_width: int) -> tuple[Rgb, NDArray[np.bool_], int]:
    """Return picture and mask at least *min_width* wide, and the whole factor by which they were enlarged."""
    factor = max(1, -(-min_width // rgb.shape[1]))
    if factor == 1:
        return rgb, mask, 1
    size = (rgb.shape[1] * factor, rgb.shape[0] * factor)
    large = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
    return large, mask.repeat(factor, axis=0).repeat(factor, axis=1), factor


def save_overlay(
    path: Path, image: NDArray[Any], mask: NDArray[np.bool_], lesions: Sequence[tuple[int, float, float, float, str]]
) -> None:
    """Draw *image* ``(C, Z, Y, X)`` with numbered lesions; of a volume, a montage of the slices with most lesion.

    *lesions* are (number, z, y, x, text) with voxel coordinates of the centre.
    """
    depth = mask.shape[0]
    if depth == 1:
        shown = [0]
    else:
        area = mask.reshape(depth, -1).sum(axis=1)
        centres = {round(z) for _, z, *_ in lesions}
        worth = sorted(np.flatnonzero(area), key=lambda z: (int(z) not in centres, -area[z]))[:_MONTAGE]
        shown = sorted(int(z) for z in worth) or [depth // 2]
    least = _MIN_WIDTH if len(shown) == 1 else 320
    limits = contrast(image[:, shown])  # one for all, so that they can be compared
    tiles = []
    for z in shown:
        here = [lesion for lesion in lesions if depth == 1 or round(lesion[1]) == z]
        tile = _annotated(to_rgb(image[:, z], limits), mask[z], here, least)
        tiles.append(tile if depth == 1 else _titled(tile, f"slice {z + 1} of {depth}"))
    _save(path, tiles[0] if len(tiles) == 1 else _grid(tiles, columns=min(4, len(tiles))))


def save_overview(
    path: Path,
    image: NDArray[Any],
    mask: NDArray[np.bool_],
    lesions: Sequence[tuple[int, float, float, float, str]],
    spacing_mm: tuple[float, float, float] | None,
) -> None:
    """Draw maximum-intensity projections of an axial volume ``(C, Z, Y, X)`` from above, the front and the side.

    Lesions as for ``save_overlay``; every voxel is as large as it is in the patient.
    """
    spacing = np.array(spacing_mm or (1.0, 1.0, 1.0))
    shape = np.maximum(1, np.round(np.array(mask.shape) * spacing / spacing.min())).astype(int)
    shape *= max(1, -(-_MIN_WIDTH // int(shape[2])))  # all three sides on one scale
    sides = [image.max(axis=1 + axis) for axis in range(3)]
    limits = contrast(np.concatenate([side.reshape(len(image), -1) for side in sides], axis=1))
    tiles = []
    for axis, title in enumerate(("axial", "coronal", "sagittal")):
        rows, columns = (a for a in range(3) if a != axis)
        upside = rows == 0  # slices are stored from the feet up
        planes, flat = sides[axis], np.asarray(mask.any(axis=axis))
        if upside:
            planes, flat = planes[:, ::-1], flat[::-1]
        size = (int(shape[columns]), int(shape[rows]))
        rgb = np.asarray(Image.fromarray(to_rgb(planes, limits)).resize(size, Image.Resampling.BILINEAR))
        stretched = np.asarray(Image.fromarray(flat).resize(size, Image.Resampling.NEAREST))
        scale = shape / mask.shape
        here = []
        for number, *centre, text in lesions:
            row = mask.shape[rows] - 1 - centre[rows] if upside else centre[rows]
            y, x = (row + 0.5) * scale[rows] - 0.5, (centre[columns] + 0.5) * scale[columns] - 0.5
            here.append((number, 0.0, y, x, text))
        tiles.append(_titled(_annotated(rgb, stretched, here, 1), title))
    _save(path, _grid(tiles, columns=3))


def _annotated(
    rgb: Rgb, mask: NDArray[np.bool_], lesions: Sequence[tuple[int, float, float, float, str]], least: int
) -> Rgb:
    rgb, large, factor = enlarged(rgb, mask, least)
    marked = outline(overlay(rgb, large, opacity=0.18), large, width=2)
    picture = Image.fromarray(marked)
    draw = ImageDraw.Draw(picture)
    height, width = large.shape
    for number, _, y, x, text in lesions:
        column = large[:, int((x + 0.5) * factor)] if 0 <= x < mask.shape[1] else large[:, 0]
        reach = int(column.sum() / 2) + 8
        left, top = (x + 0.5) * factor + reach * 0.7, (y + 0.5) * factor - reach - 14
        label = f"{number} {text}".strip()
        box = draw.textbbox((min(max(left, 2), width - 30), min(max(top, 2), height - 24)), label, font=_font(18))
        draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=_BACKGROUND)
        draw.text((box[0], box[1]), label, fill=LESION, font=_font(18), anchor="lt")
    return np.asarray(picture)


def save_contact_sheet(
    path: Path, items: Sequence[tuple[str, NDArray[Any], NDArray[np.bool_]]], columns: int = 8
) -> None:
    """Draw small pictures with outlined masks: (title, image ``(Y, X)`` or ``(C, Y, X)``, mask ``(Y, X)``)."""
    tiles = []
    for title, image, mask in items:
        rgb, large, _ = enlarged(to_rgb(image), mask, 200)
        tile = _fitted(outline(rgb, large, REFERENCE, 2), 220)
        tiles.append(_titled(tile, title))
    _save(path, _grid(tiles, columns=min(columns, max(1, len(tiles)))))


def save_worst_cases(path: Path, rows: Sequence[WorstCasePicture]) -> None:
    """Write each case twice, side by side: the scan alone, then with both outlines."""
    tiles = []
    for title, image, reference, prediction in rows:
        rgb, r, _ = enlarged(to_rgb(image), reference, 360)
        _, p, _ = enlarged(to_rgb(image), prediction, 360)
        both = outline(outline(rgb, r, REFERENCE, 2), p, LESION, 1)
        tiles += [
            _titled(_fitted(rgb, 380), title),
            _titled(_fitted(both, 380), "green: reference   orange: prediction"),
        ]
    _save(path, _grid(tiles, columns=4 if len(tiles) > 2 else 2))


def save_curves(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Draw loss and validation scores by epoch; the best epoch (by ``score``) is marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    left.plot(epochs, history["loss"], color="#4c78a8", marker=".", label="training loss")
    left.set(xlabel="epoch", title="Training loss")
    for name, colour, title in (
        ("dice", "#e45756", "Dice per patient"),
        ("lesion_f1", "#54a24b", "lesion F1"),
        ("lesion_recall", "#b0b6bd", "lesion recall"),
    ):
        right.plot(epochs, history[name], color=colour, marker=".", label=title)
    right.set(xlabel="epoch", ylim=(0, 1), title="Validation, averaged weights")
    scores = np.asarray(history["score"], dtype=float)
    if np.isfinite(scores).any():
        right.axvline(epochs[int(np.nanargmax(scores))], color="#888", linestyle=":", label="best")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    atomic_write(path, lambda to: figure.savefig(to, format="png"))


def _grid(tiles: Sequence[Rgb], columns: int, gap: int = 6) -> Rgb:
    height, width = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    rows = -(-len(tiles) // columns)
    sheet = np.empty((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.uint8)
    sheet[:] = _BACKGROUND
    for i, tile in enumerate(tiles):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def _fitted(rgb: Rgb, size: int) -> Rgb:
    """Scale *rgb* to *size* at its longer side."""
    scale = size / max(rgb.shape[:2])
    shape = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return np.asarray(Image.fromarray(rgb).resize(shape, Image.Resampling.LANCZOS))


def _titled(tile: Rgb, title: str) -> Rgb:
    font = _font(12)
    while title and font.getlength(title) > tile.shape[1] - 4:
        title = title[: len(title) // 2 - 2] + "…" + title[len(title) // 2 + 2 :] if len(title) > 8 else title[:-1]
    bar = Image.new("RGB", (tile.shape[1], 20), _BACKGROUND)
    ImageDraw.Draw(bar).text((2, 3), title, fill=_TEXT, font=font)
    return np.concatenate([np.asarray(bar), tile])


@lru_cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _save(path: Path, rgb: Rgb) -> None:
    # Better compression would take five times as long as all other steps of a prediction, for a tenth of the size.
    atomic_write(path, lambda to: Image.fromarray(rgb).save(to, format="PNG", compress_level=1))
