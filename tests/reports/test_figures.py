"""Pictures show what they should, and names of files do no harm in reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaseg_cli.core.detection import find_lesions
from metaseg_cli.errors import Problem
from metaseg_cli.reports import figures, overlays
from metaseg_cli.reports.prepare_page import render_prepare_page
from metaseg_cli.reports.region_colours import LESION, REFERENCE, region_colours

DISC = np.hypot(*np.mgrid[-32:32, -32:32]) < 8


def marked(
    image: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, float, float] | None = None
) -> overlays.MarkedScan:
    layer = overlays.RegionLayer(name="metastasis", colour=LESION, mask=mask)
    numbers = find_lesions(mask)[0]
    return overlays.MarkedScan(image=image, layers=[layer], numbers=numbers, spacing_mm=spacing_mm)


def test_each_lesion_is_shown_once_on_the_slice_where_it_is_largest() -> None:
    mask = np.zeros((20, 32, 32), bool)
    for z, half in ((3, 1), (4, 4), (5, 3), (6, 1)):  # largest on slice 4, though slices 5 and 6 show it too
        mask[z, 8 - half : 8 + half, 8 - half : 8 + half] = True
    mask[12:15, 20:23, 20:23] = mask[13, 19:24, 19:24] = True
    shown, rest = overlays.best_slices(marked(np.zeros((1, 20, 32, 32)), mask))
    assert (shown, rest) == ([4, 13], 0)
    many = np.zeros((40, 8, 8), bool)
    many[::2, 2:4, 2:4] = True
    shown, rest = overlays.best_slices(marked(np.zeros((1, 40, 8, 8)), many))
    assert (len(shown), rest) == (12, 8)


def test_regions_keep_their_colours_and_the_index_region_is_orange(tmp_path: Path) -> None:
    colours = region_colours(["WT", "TC", "ET"], "ET")
    assert colours["ET"] == LESION
    assert len(set(colours.values())) == 3
    inner, outer = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    inner[28:36, 28:36] = outer[16:48, 16:48] = True
    for masks in ([outer, inner, inner], [inner, outer, outer]):  # a swapped label mapping looks different
        figures.save_contact_sheet(tmp_path / "c.png", [("a", np.zeros((64, 64)), masks)], colours)
        with Image.open(tmp_path / "c.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))[:-24]
        orange = np.argwhere((abs(pixels.astype(int) - LESION) < 60).all(axis=-1))
        width = np.ptp(orange[:, 1])
        assert (width < 60) == (masks[0] is outer)


def test_worst_cases_show_each_region_apart_in_reference_and_prediction(tmp_path: Path) -> None:
    colours = region_colours(["WT", "ET"], "ET")
    inner, outer = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    inner[28:36, 28:36] = outer[16:48, 16:48] = True
    swapped = ("a", np.zeros((1, 64, 64)), np.stack([outer, inner]), np.stack([inner, outer]))
    figures.save_worst_cases(tmp_path / "w.png", [swapped], colours)
    with Image.open(tmp_path / "w.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[:-24]  # without the legend
    widths = []
    for panel in np.array_split(pixels, 3, axis=1):
        orange = np.flatnonzero((abs(panel - LESION) < 60).all(axis=-1).any(axis=0))
        widths.append(np.ptp(orange) if len(orange) else 0)
    assert widths[0] == 0  # the scan alone
    assert 0 < widths[1] < 100 < widths[2]


def test_regions_of_the_same_voxels_are_both_seen(tmp_path: Path) -> None:
    colours = region_colours(["ET", "TC", "WT"], "ET")
    row = ("a", np.zeros((1, 64, 64)), np.stack([DISC] * 3), np.stack([DISC] * 3))
    figures.save_worst_cases(tmp_path / "w.png", [row], colours)
    with Image.open(tmp_path / "w.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)[:-24]
    for colour in colours.values():
        assert (abs(pixels - colour) < 60).all(axis=-1).sum() > 50


def test_one_region_is_outlined_twice_in_one_picture(tmp_path: Path) -> None:
    row = ("a", np.zeros((1, 64, 64)), DISC[None], np.roll(DISC, 20, axis=1)[None])
    figures.save_worst_cases(tmp_path / "w.png", [row], region_colours(["metastasis"], "metastasis"))
    with Image.open(tmp_path / "w.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    left, right = np.array_split(pixels, 2, axis=1)
    for colour in (REFERENCE, LESION):
        assert not (abs(left - colour) < 60).all(axis=-1).any()
        assert (abs(right - colour) < 60).all(axis=-1).any()


def test_no_title_is_cut_and_pictures_stay_in_line() -> None:
    tile = np.full((50, 200, 3), 255, np.uint8)
    long, short = figures.titled_alike([("sub-0001_" * 20 + "end of a name", tile), ("b", tile)])
    assert long.shape == short.shape
    assert (long[-50:] == 255).all()
    assert (short[-50:] == 255).all()
    assert len(long) > 4 + 16 * 5 + 50  # 193 letters of at least 5 pixels take five lines and more
    assert figures.titled(tile, "b").shape == (70, 200, 3)


def test_an_outline_leaves_the_lesion_visible() -> None:
    rgb = np.full((64, 64, 3), 100, np.uint8)
    drawn = figures.outline(rgb, DISC, (255, 0, 0))
    assert (drawn[DISC] == 100).all()
    assert (drawn == (255, 0, 0)).all(axis=-1).sum() > 30


def test_opacity_nought_changes_nothing_and_one_covers() -> None:
    rgb = np.full((64, 64, 3), 100, np.uint8)
    np.testing.assert_array_equal(figures.overlay(rgb, DISC, (255, 0, 0), 0.0), rgb)
    assert (figures.overlay(rgb, DISC, (255, 0, 0), 1.0)[DISC] == (255, 0, 0)).all()


@pytest.mark.parametrize("depth", [1, 5, 40])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_overlays_of_pictures_and_volumes(tmp_path: Path, depth: int, channels: int) -> None:
    image = np.random.default_rng(0).normal(size=(channels, depth, 64, 64))
    mask = np.broadcast_to(DISC, (depth, 64, 64))
    overlays.save_overlay(tmp_path / "o.png", marked(image, mask))
    with Image.open(tmp_path / "o.png") as picture:
        assert min(picture.size) >= 320
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def test_slices_of_a_volume_share_their_contrast(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, 2, 64, 64)) * np.array([0.25, 1.0])[:, None, None]
    mask = np.zeros((2, 64, 64), bool)
    mask[0, 2, 2] = mask[1, 60, 60] = True
    overlays.save_overlay(tmp_path / "o.png", marked(image, mask))
    with Image.open(tmp_path / "o.png") as picture:
        dark, bright = np.array_split(np.asarray(picture.convert("L")), 2, axis=1)
    assert bright.mean() > 2.5 * dark.mean()


def test_an_overlay_without_lesions_is_the_picture(tmp_path: Path) -> None:
    overlays.save_overlay(tmp_path / "o.png", marked(np.zeros((1, 9, 32, 32)), np.zeros((9, 32, 32), bool)))
    assert (tmp_path / "o.png").exists()


def test_curves_survive_a_run_without_validation(tmp_path: Path) -> None:
    nothing = [float("nan")] * 3
    history: dict[str, Any] = {
        "epoch": [1, 2, 3],
        "loss": [3, 2, 1],
        "dice": nothing,
        "lesion_f1": nothing,
        "lesion_recall": nothing,
    }
    figures.save_curves(tmp_path / "c.png", {**history, "score": nothing})
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_names_cannot_inject_into_the_report(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>.png"
    render_prepare_page(
        tmp_path / "r.html",
        title=evil,
        facts=[("a", evil)],
        notes=[evil],
        problems=[Problem(file=Path(evil), reason=evil, remedy=evil)],
        cases=[{"case": evil}],
        pictures=[],
    )
    text = (tmp_path / "r.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_overview_has_the_head_up_and_shows_three_sides(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((1, 10, 40, 30)).astype(np.float32)
    rows = {}
    for z in (1, 8):
        mask = np.zeros((10, 40, 30), bool)
        mask[z, 10:14, 20:24] = True
        overlays.save_overview(tmp_path / "o.png", marked(image, mask, (3.0, 1.0, 1.0)))
        with Image.open(tmp_path / "o.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        pixels = pixels[:-24]  # without the legend
        orange = np.argwhere((abs(pixels - LESION) < 8).all(axis=-1))
        side = orange[:, 1] * 3 // pixels.shape[1]
        rows[z] = [orange[side == each, 0].mean() for each in range(3)]
    assert rows[8][0] == rows[1][0]
    assert rows[8][1] < rows[1][1] - 50
    assert rows[8][2] < rows[1][2] - 50
