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
from metaseg_cli.reports.region_colours import LESION, REFERENCE, Colour

Rgb = NDArray[np.uint8]
# Title, image ``(Y, X)`` or ``(C, Y, X)``, reference and prediction ``(R, Y, X)``.
WorstCasePicture = tuple[str, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]

BACKGROUND: Colour = (16, 18, 22)
TEXT: Colour = (214, 218, 224)
_MIN_TITLE = 120  # pixels: a title above a narrower tile would be a column of letters


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


def save_contact_sheet(
    path: Path,
    items: Sequence[tuple[str, NDArray[Any], Sequence[NDArray[np.bool_]]]],
    colours: Mapping[str, Colour],
    columns: int = 8,
) -> None:
    """Draw small pictures with outlined regions: (title, image ``(Y, X)`` or ``(C, Y, X)``, a mask ``(Y, X)`` each).

    *colours* name the regions in the order of the masks; a legend says which is which.
    """
    from metaseg_cli.reports.overlays import legend_strip  # which draws with this module

    tiles = []
    for title, image, masks in items:
        rgb, _, factor = enlarged(to_rgb(image), np.zeros(image.shape[-2:], bool), 200)
        tiles.append((title, _fitted(_outlined(rgb, masks, list(colours.values()), factor), 220)))
    sheet = grid(titled_alike(tiles), columns=min(columns, max(1, len(tiles))))
    save_rgb(path, np.concatenate([sheet, legend_strip(list(colours.items()), "", sheet.shape[1])]))


def _outlined(rgb: Rgb, masks: Sequence[NDArray[np.bool_]], colours: Sequence[Colour], factor: int) -> Rgb:
    """Draw the rims of *masks*, enlarged by *factor* like *rgb*; the widest region first, so that it covers none.

    Its rim is the broadest, too: of regions that have the same voxels, each is seen.
    """
    pairs = reversed(list(zip(masks, colours, strict=True)))
    wide_first = sorted(pairs, key=lambda pair: -int(pair[0].sum()))
    for broader, (mask, colour) in zip(reversed(range(len(wide_first))), wide_first, strict=True):
        rgb = outline(rgb, mask.repeat(factor, axis=0).repeat(factor, axis=1), colour, 2 + broader)
    return rgb


def save_worst_cases(path: Path, rows: Sequence[WorstCasePicture], colours: Mapping[str, Colour]) -> None:
    """Write the scan of each case, and beside it reference and prediction; *colours* name the regions in their order.

    One region: both outlines in one picture. Several: reference and prediction apart, each region in its colour, so
    that regions which are mixed up are seen; a legend says which is which.
    """
    from metaseg_cli.reports.overlays import legend_strip  # which draws with this module

    tiles, several = [], len(colours) > 1
    for title, image, reference, prediction in rows:
        rgb, _, factor = enlarged(to_rgb(image), np.zeros(image.shape[-2:], bool), 360)
        tiles.append((title, _fitted(rgb, 380)))
        if several:
            for name, masks in (("reference", reference), ("prediction", prediction)):
                tiles.append((name, _fitted(_outlined(rgb, list(masks), list(colours.values()), factor), 380)))
        else:
            r, p = (mask[0].repeat(factor, axis=0).repeat(factor, axis=1) for mask in (reference, prediction))
            both = outline(outline(rgb, r, REFERENCE, 2), p, LESION, 1)
            tiles.append(("green: reference   orange: prediction", _fitted(both, 380)))
    sheet = grid(titled_alike(tiles), columns=3 if several else 4 if len(tiles) > 2 else 2)
    if several:
        sheet = np.concatenate([sheet, legend_strip(list(colours.items()), "", sheet.shape[1])])
    save_rgb(path, sheet)


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


def grid(tiles: Sequence[Rgb], columns: int, gap: int = 6) -> Rgb:
    """Return *tiles* row by row on one sheet."""
    height, width = max(t.shape[0] for t in tiles), max(t.shape[1] for t in tiles)
    rows = -(-len(tiles) // columns)
    sheet = np.empty((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), np.uint8)
    sheet[:] = BACKGROUND
    for i, tile in enumerate(tiles):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return sheet


def _fitted(rgb: Rgb, size: int) -> Rgb:
    """Scale *rgb* to *size* at its longer side."""
    scale = size / max(rgb.shape[:2])
    shape = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    return np.asarray(Image.fromarray(rgb).resize(shape, Image.Resampling.LANCZOS))


def titled(tile: Rgb, title: str, lines: int = 1) -> Rgb:
    """Return *tile* below *title*, in as many lines as it takes, and at least *lines*."""
    if tile.shape[1] < _MIN_TITLE:
        margin = np.full((tile.shape[0], _MIN_TITLE - tile.shape[1], 3), BACKGROUND, np.uint8)
        tile = np.concatenate([tile, margin], axis=1)
    text = _folded(title, tile.shape[1] - 4)
    bar = Image.new("RGB", (tile.shape[1], 4 + 16 * max(lines, len(text))), BACKGROUND)
    for i, line in enumerate(text):
        ImageDraw.Draw(bar).text((2, 3 + 16 * i), line, fill=TEXT, font=font(12))
    return np.concatenate([np.asarray(bar), tile])


def titled_alike(tiles: Sequence[tuple[str, Rgb]]) -> list[Rgb]:
    """Return each tile below its title; room for the longest title above all of them keeps the pictures in line."""
    lines = max((len(_folded(title, max(_MIN_TITLE, tile.shape[1]) - 4)) for title, tile in tiles), default=1)
    return [titled(tile, title, lines) for title, tile in tiles]


def _folded(title: str, width: float) -> list[str]:
    """Return *title* in lines up to *width* pixels, broken at spaces where there are any, and anywhere else."""
    lines = [""]
    for word in title.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font(12).getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font(12).getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@lru_cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font."""
    return ImageFont.load_default(size)


def save_rgb(path: Path, rgb: Rgb) -> None:
    """Write a PNG, whole or not at all."""
    # Better compression would take five times as long as all other steps of a prediction, for a tenth of the size.
    atomic_write(path, lambda to: Image.fromarray(rgb).save(to, format="PNG", compress_level=1))
