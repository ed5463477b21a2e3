"""Draw the pictures of docs/concepts/coordinates.md: ``python docs/pictures/make_coordinates.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Ellipse

HERE = Path(__file__).parent
_PAPER = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1}
_HEAD = {"facecolor": "#e8e8ee", "edgecolor": "#555555", "linewidth": 1.5}


def axes_of_the_patient() -> None:
    """The axial slice as it is shown, with the patient's axes and those of the array."""
    figure, (head, array) = plt.subplots(1, 2, figsize=(8.4, 3.8))
    head.add_patch(Ellipse((0, 0), 3.0, 3.8, **_HEAD))
    head.add_patch(Ellipse((0, -1.98), 0.35, 0.3, **_HEAD))
    for text, x, y in (("R", -2.0, 0), ("L", 2.0, 0), ("A", 0, -2.45), ("P", 0, 2.35)):
        head.text(x, y, text, ha="center", va="center", fontsize=15, weight="bold")
    for dx, dy, text, at in ((1.1, 0, "x → L", (0.45, 0.32)), (0, 1.1, "y → P", (-0.75, 0.75))):
        head.annotate("", (dx, dy), (0, 0), arrowprops={"arrowstyle": "->", "color": "#c43d00", "lw": 2})
        head.text(*at, text, color="#c43d00", fontsize=11)
    head.plot(0, 0, "o", color="#c43d00")
    head.text(0, -0.3, "z → S (away from you)", color="#c43d00", fontsize=9, ha="center")
    head.set(xlim=(-2.4, 2.4), ylim=(2.7, -2.9), aspect="equal", title="Patient coordinates (LPS, mm)")
    head.axis("off")
    size = 5
    array.pcolormesh(np.add.outer(np.arange(size), np.arange(size)) % 2, cmap="Greys", alpha=0.15)
    for row in range(size):
        for column in range(size):
            array.text(column + 0.5, row + 0.5, f"{row},{column}", ha="center", va="center", fontsize=8)
    array.annotate("", (2.4, -0.35), (0.1, -0.35), arrowprops={"arrowstyle": "->", "lw": 2}, annotation_clip=False)
    array.text(2.5, -0.3, "X: patient right to left", fontsize=10)
    array.annotate("", (-0.35, 2.4), (-0.35, 0.1), arrowprops={"arrowstyle": "->", "lw": 2}, annotation_clip=False)
    array.text(-0.62, 0.2, "Y: front to back", fontsize=10, rotation=90, va="top")
    array.set(xlim=(-0.9, size), ylim=(size, -0.9), aspect="equal", title="array[channel, z, y, x], canonical")
    array.axis("off")
    figure.tight_layout()
    figure.savefig(HERE / "coordinates_axes.png", dpi=110)


def voxels_and_millimetres() -> None:
    """Voxel centres of an oblique grid, its origin, and the affine's columns."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    spacing, angle, origin = np.array([1.0, 1.6]), np.deg2rad(18), np.array([-2.0, -2.6])
    direction = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = direction * spacing
    for j in range(4):
        for i in range(6):
            centre = origin + matrix @ [i, j]
            corners = centre + np.array([matrix @ c for c in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))])
            axes.fill(*corners.T, facecolor="#f4f4f8", edgecolor="#9999aa")
            axes.plot(*centre, ".", color="#555566")
    for column, text in ((matrix[:, 0], "affine[:, 0]: one step in x"), (matrix[:, 1], "affine[:, 1]: one step in y")):
        axes.annotate("", origin + column, origin, arrowprops={"arrowstyle": "->", "color": "#c43d00", "lw": 2.2})
        axes.text(*(origin + column + [0.2, 0.12]), text, color="#c43d00", fontsize=9, bbox=_PAPER)
    axes.plot(*origin, "o", color="#c43d00")
    axes.text(origin[0] - 0.4, origin[1] - 1.2, "origin: centre of voxel (0, 0, 0)", color="#c43d00", fontsize=9)
    axes.set(xlabel="x (mm, to the patient's left)", ylabel="y (mm, to the back)", aspect="equal")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "coordinates_affine.png", dpi=110)


if __name__ == "__main__":
    axes_of_the_patient()
    voxels_and_millimetres()
