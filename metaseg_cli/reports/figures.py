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
# Title, image ``(Y, X)`` or ``(C, Y, X)``, reference and prediction ``(Y, X)``.
WorstCasePicture = tuple[str, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]

BACKGROUND: Colour = (16, 18, 22)
TEXT: Colour = (214, 218, 224)


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
        wide_first = sorted(zip(masks, colours.values(), strict=True), key=lambda pair: -int(pair[0].sum()))
        for mask, colour in wide_first:
            rgb = outline(rgb, mask.repeat(factor, axis=0).repeat(factor, axis=1), colour, 2)
        tiles.append(titled(_fitted(rgb, 220), title))
    sheet = grid(tiles, columns=min(columns, max(1, len(tiles))))
    save_rgb(path, np.concatenate([sheet, legend_strip(list(colours.items()), "", sheet.shape[1])]))


def save_worst_cases(path: Path, rows: Sequence[WorstCasePicture]) -> None:
    """Write each case twice, side by side: the scan alone, then with both outlines."""
    tiles = []
    for title, image, reference, prediction in rows:
        rgb, r, _ = enlarged(to_rgb(image), reference, 360)
        _, p, _ = enlarged(to_rgb(image), prediction, 360)
        both = outline(outline(rgb, r, REFERENCE, 2), p, LESION, 1)
        tiles += [
            titled(_fitted(rgb, 380), title),
            titled(_fitted(both, 380), "green: reference   orange: prediction"),
        ]
    save_rgb(path, grid(tiles, columns=4 if len(tiles) > 2 else 2))


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


def titled(tile: Rgb, title: str) -> Rgb:
    """Return *tile* below a line with *title*, shortened in its middle to fit."""
    small = font(12)
    while title and small.getlength(title) > tile.shape[1] - 4:
        title = title[: len(title) // 2 - 2] + "…" + title[len(title) // 2 + 2 :] if len(title) > 8 else title[:-1]
    bar = Image.new("RGB", (tile.shape[1], 20), BACKGROUND)
    ImageDraw.Draw(bar).text((2, 3), title, fill=TEXT, font=small)
    return np.concatenate([np.asarray(bar), tile])


@lru_cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font."""
    return ImageFont.load_default(size)


def save_rgb(path: Path, rgb: Rgb) -> None:
    """Write a PNG, whole or not at all."""
    # Better compression would take five times as long as all other steps of a prediction, for a tenth of the size.
    atomic_write(path, lambda to: Image.fromarray(rgb).save(to, format="PNG", compress_level=1))
