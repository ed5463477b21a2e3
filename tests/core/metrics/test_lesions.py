"""Surfaces, lesions and the challenge's protocols against independent libraries, on masks with every difficulty."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from skimage.measure import label as sk_label

from metaseg_cli.core.metrics import Protocol, compare, score
from metaseg_cli.core.metrics.lesions import SizeClass
from metaseg_cli.core.metrics.surfaces import surface_distances
from metaseg_cli.errors import ConfigError, InputError
from tests.common import ROOT

Mask = np.ndarray
SPACINGS = (0.5, 0.9375, 1.0, 1.2, 3.0)


def spheres(rng: np.random.Generator, shape: tuple[int, ...], count: int, radius: tuple[float, float]) -> Mask:
    mask = np.zeros(shape, bool)
    grid = np.indices(shape)
    for _ in range(count):
        centre = [rng.integers(0, n) for n in shape]
        distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
        mask |= distance < rng.uniform(*radius) ** 2
    return mask


def shifted(mask: Mask, by: tuple[int, ...]) -> Mask:
    return np.asarray(ndi.shift(mask.astype(float), by, order=0) > 0.5)


def random_pair(seed: int) -> tuple[Mask, Mask, tuple[float, ...]]:
    """Touching, split, border, one-voxel, false and empty lesions, in 2D and 3D, on uneven grids."""
    rng = np.random.default_rng(seed)
    dims = 2 if seed % 5 == 4 else 3
    shape = tuple(int(n) for n in rng.integers(10, 30, dims))
    r = spheres(rng, shape, int(rng.integers(1, 7)), (0.6, 4))
    p = shifted(r, tuple(int(n) for n in rng.integers(-1, 2, dims)))
    p[tuple(slice(None, None, 7) if axis == 0 else slice(None) for axis in range(dims))] = False  # cut in pieces
    p |= spheres(rng, shape, int(rng.integers(0, 9)), (0.6, 2))
    if seed % 9 == 5:
        r[:] = False
    if seed % 9 == 7:
        p[:] = False
    if seed == 25:
        r[:] = p[:] = False
    return r, p, tuple(float(s) for s in rng.choice(SPACINGS, dims))


SEEDS = range(45)


@pytest.fixture(scope="module")
def surface_distance() -> object:
    """The library of the surfel definition, made to run on today's numpy and scipy."""
    patched = pytest.MonkeyPatch()
    patched.setattr(np, "Inf", np.inf, raising=False)
    patched.setattr(ndi, "filters", ndi, raising=False)
    patched.setattr(ndi, "morphology", ndi, raising=False)
    yield pytest.importorskip("surface_distance.metrics")
    patched.undo()


@pytest.mark.parametrize("seed", SEEDS)
def test_surfel_distances_are_those_of_surface_distance(seed: int, surface_distance: object) -> None:
    r, p, spacing = random_pair(seed)
    if not (r.any() and p.any()):
        pytest.skip("an empty mask has no distances there")
    theirs = surface_distance.compute_surface_distances(r, p, list(spacing))
    s = score(r, p, spacing)
    assert s["hd95_mm"] == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), abs=1e-9)
    assert s["hd_mm"] == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 100), abs=1e-9)
    means = surface_distance.compute_average_surface_distance(theirs)
    assert s["assd_mm"] == pytest.approx(np.mean(means), abs=1e-9)
    for tolerance in (1, 2):
        near = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert s[f"nsd_{tolerance}mm"] == pytest.approx(near, abs=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", SEEDS)
def test_border_distances_are_those_of_monai(seed: int) -> None:
    monai = pytest.importorskip("monai.metrics")
    import torch

    r, p, spacing = random_pair(seed)
    if not (r.any() and p.any()):
        pytest.skip("an empty mask has no distances there")
    ours = surface_distances(r, p, spacing, border_voxels=True)
    a, b = (torch.from_numpy(m)[None, None].float() for m in (p, r))
    hd = monai.compute_hausdorff_distance(a, b, include_background=True, spacing=list(spacing))
    assert ours.hd() == pytest.approx(float(hd), abs=1e-5)
    nsd = monai.compute_surface_dice(a, b, [1.0], include_background=True, spacing=list(spacing))
    assert ours.nsd(1.0) == pytest.approx(float(nsd), abs=1e-6)
    pooled = np.concatenate([ours.reference, ours.prediction]).mean()
    assd = monai.compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=list(spacing))
    assert pooled == pytest.approx(float(assd), abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_panoptic_quality_is_that_of_monai(seed: int) -> None:
    monai = pytest.importorskip("monai.metrics.panoptic_quality")
    import torch

    r, p, spacing = random_pair(seed)
    labels = [sk_label(m, connectivity=m.ndim) for m in (p, r)]
    if not labels[0].max() or not labels[1].max():
        pytest.skip("not defined there")
    tp, fp, fn, iou = (float(v) for v in monai.compute_panoptic_quality(
        torch.from_numpy(labels[0]), torch.from_numpy(labels[1]), match_iou_threshold=0.5, output_confusion_matrix=True
    ))  # fmt: skip
    s = score(r, p, spacing)
    assert s["rq"] == pytest.approx(tp / (tp + 0.5 * fp + 0.5 * fn))
    assert s["sq"] == pytest.approx(iou / tp if tp else 0, abs=1e-6)
    assert s["pq"] == pytest.approx(s["sq"] * s["rq"])


def challenge_of_2023(r: Mask, p: Mask, spacing: tuple[float, ...], surface_distance: object) -> dict[str, float]:
    """Step by step over whole volumes, with other libraries than ours."""
    element = ndi.generate_binary_structure(3, 2)
    joined = sk_label(ndi.binary_dilation(r, element), connectivity=3) * r
    predicted = sk_label(p, connectivity=3)
    voxel = math.prod(spacing)
    used: set[int] = set()
    dices, distances, tp, fn = [], [], 0, 0
    for number in np.unique(joined[joined > 0]):
        g = joined == number
        met = set(np.unique(predicted[ndi.binary_dilation(g, element)])) - {0}
        used |= met
        mine = np.isin(predicted, list(met))
        if g.sum() * voxel <= 2:
            continue
        tp, fn = tp + bool(met), fn + (not met)
        dices.append(2 * (mine & g).sum() / (mine.sum() + g.sum()))
        if met:
            found = surface_distance.compute_surface_distances(g, mine, list(spacing))
            distances.append(surface_distance.compute_robust_hausdorff(found, 95))
        else:
            distances.append(374)
    fp = len(set(np.unique(predicted)) - {0} - used)
    n = len(dices) + fp
    return {
        "lesion_tp": tp,
        "lesion_fp": fp,
        "lesion_fn": fn,
        "lesion_wise_dice": sum(dices) / n if n else 1,
        "lesion_wise_hd95_mm": (sum(distances) + 374 * fp) / n if n else 0,
    }


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed % 5 != 4])
def test_the_protocol_of_2023_is_the_challenges(seed: int, surface_distance: object) -> None:
    r, p, spacing = random_pair(seed)
    s = score(r, p, spacing, "brats-mets-2023")
    for name, value in challenge_of_2023(r, p, spacing, surface_distance).items():
        assert s[name] == pytest.approx(value, abs=1e-9), name
    if not r.any() or not p.any():
        assert s["hd95_mm"] == (0 if not r.any() and not p.any() else 374)


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed % 5 != 4])  # the others are pictures
def test_a_volume_of_one_slice_has_the_numbers_of_the_challenge_of_2023(seed: int, surface_distance: object) -> None:
    r, p, spacing = random_pair(seed)
    z = int(r.sum(axis=(1, 2)).argmax())
    r, p = r[z : z + 1], p[z : z + 1]
    s = score(r, p, spacing, "brats-mets-2023")
    for name, value in challenge_of_2023(r, p, spacing, surface_distance).items():
        assert s[name] == pytest.approx(value, abs=1e-9), name


def test_the_protocol_of_2026_is_the_challenges(tmp_path: Path) -> None:
    python = os.environ.get("METASEG_PANOPTICA_PYTHON")
    if python is None:
        pytest.skip("METASEG_PANOPTICA_PYTHON names no environment with panoptica and brats-evaluation")
    pairs = [random_pair(seed) for seed in SEEDS if seed % 5 != 4]
    arrays: dict[str, Any] = {
        f"{name}{i}": value for i, pair in enumerate(pairs) for name, value in zip("rps", pair, strict=True)
    }
    np.savez(tmp_path / "pairs.npz", **arrays)
    script = ROOT / "tests" / "peers" / "panoptica_scores.py"
    files = [str(tmp_path / "pairs.npz"), str(tmp_path / "scores.json")]
    subprocess.run([python, str(script), *files], check=True, stdout=subprocess.DEVNULL)
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert len(rows) == len(pairs)
    for (r, p, spacing), row in zip(pairs, rows, strict=True):
        tolerance = f"{min(spacing):g}mm"
        names = {
            "all_instance_tp": "lesion_tp",
            "all_instance_fp": "lesion_fp",
            "all_instance_fn": "lesion_fn",
            "all_instance_f1": "rq",
            "sq_dsc": "sq",
            "sq_hd95": "sq_hd95_mm",
            "sq_nsd": f"sq_nsd_{tolerance}",
            "pq_dsc": "pq",
            "lesionwise_dsc_mean": "lesion_wise_dice",
            "lesionwise_hd95_mean": "lesion_wise_hd95_mm",
            "lesionwise_nsd_mean": f"lesion_wise_nsd_{tolerance}",
            "large_instance_f1": "lesion_f1_large",
            "small_instance_f1": "lesion_f1_small",
        }
        s = score(r, p, spacing, "brats-mets-2026")
        for theirs, ours in names.items():
            expected = math.nan if row[theirs] is None else row[theirs]
            assert s[ours] == pytest.approx(expected, abs=1e-9, nan_ok=True), ours


@pytest.mark.parametrize("protocol", [None, "brats-mets-2023", "brats-mets-2026"])
def test_a_perfect_mask_has_perfect_scores(protocol: str | None) -> None:
    r, _, spacing = random_pair(1)
    s = score(r, r, spacing, protocol)
    assert s["hd_mm"] == s["hd95_mm"] == s["assd_mm"] == s["lesion_wise_hd95_mm"] == 0
    assert s["lesion_wise_dice"] == s["nsd_1mm"] == s["lesion_f1"] == 1
    assert (s["lesion_fp"], s["lesion_fn"]) == (0, 0)


@pytest.mark.parametrize(("r", "p", "distance", "near"), [(0, 0, 0, 1), (1, 0, math.inf, 0), (0, 1, math.inf, 0)])
def test_surfaces_of_empty_masks(r: int, p: int, distance: float, near: float) -> None:
    reference, prediction = np.zeros((4, 5, 6)), np.zeros((4, 5, 6))
    reference[1, 2, 2], prediction[2, 2, 3] = r, p
    found = compare(reference, prediction, (2.0, 1.0, 1.0))
    assert {found.scores[n] for n in ("hd_mm", "hd95_mm", "assd_mm")} == {distance}
    assert found.scores["nsd_1mm"] == found.scores["lesion_wise_dice"] == near
    assert found.penalty == pytest.approx(math.hypot(8, 5, 6))
    assert found.scores["lesion_wise_hd95_mm"] == (found.penalty if r or p else 0)
    expected = None if r == p else "prediction empty" if r else "reference empty"
    assert found.reason("hd95_mm") == expected


def test_dense_surfaces_are_measured_to_the_same_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    r, p = rng.random((12, 30, 30)) < 0.3, rng.random((12, 30, 30)) < 0.02
    by_tree = surface_distances(r, p, (3.0, 0.7, 0.7))
    monkeypatch.setattr("metaseg_cli.core.metrics.surfaces._DENSE", 0)
    by_transform = surface_distances(r, p, (3.0, 0.7, 0.7))
    np.testing.assert_allclose(by_tree.reference, by_transform.reference, atol=1e-12)
    np.testing.assert_allclose(by_tree.prediction, by_transform.prediction, atol=1e-12)


def test_without_a_spacing_lengths_are_in_pixels() -> None:
    r, p, _ = random_pair(4)
    s = score(r, p)
    assert not any("mm" in name for name in s)
    assert {"hd95_px", "nsd_1px", "lesion_wise_hd95_px"} <= set(s)
    same = score(r[None], p[None], (5.0, 1.0, 1.0))
    assert same["hd95_mm"] == s["hd95_px"]  # one slice is a picture: its thickness is no distance


def test_a_distance_of_just_the_tolerance_is_within_it() -> None:
    r, p = np.zeros((1, 20, 20)), np.zeros((1, 20, 20))
    r[0, 5:10, 5:10] = p[0, 5:10, 5:13] = 1
    assert score(r, p, (1.0, 0.1, 1 / 3))["nsd_1mm"] == 1


def test_settings_of_ones_own() -> None:
    r, p = np.zeros((5, 20, 20), bool), np.zeros((5, 20, 20), bool)
    r[2, 2:6, 2:6] = r[2, 6:9, 6:9] = True  # joined at a corner
    p[2, 2:6, 2:6] = p[2, 2:6, 8:10] = True
    scores: Callable[[Protocol], dict[str, float]] = lambda protocol: compare(r, p, (1, 1, 1), protocol).scores  # noqa: E731
    assert scores(Protocol())["lesions_reference"] == 1
    assert scores(Protocol(connectivity=6))["lesions_reference"] == 2
    assert scores(Protocol(connectivity=6, smallest_lesion_mm3=10))["lesions_reference"] == 1
    assert scores(Protocol())["lesion_fp"] == 1
    assert scores(Protocol(dilation=3))["lesion_fp"] == 0
    far = scores(Protocol(penalty_mm=50))
    assert far["lesion_wise_hd95_mm"] == pytest.approx((compare(r, p, (1, 1, 1)).lesions.reference[0].hd95 + 50) / 2)
    with pytest.raises(ConfigError):
        Protocol(connectivity=8)
    with pytest.raises(ConfigError):
        Protocol(matching="some")
    with pytest.raises(InputError, match="spacing"):
        score(r, p, (1.0, 1.0))


def test_one_to_one_counts_a_second_piece_as_false() -> None:
    r, p = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    r[5:15, 5:15] = True
    p[5:15, 5:9] = p[5:15, 10:15] = True
    many, one = compare(r, p), compare(r, p, protocol=Protocol(matching="one-to-one"))
    assert (many.scores["lesion_fp"], one.scores["lesion_fp"]) == (0, 1)
    assert one.lesions.reference[0].dice == pytest.approx(2 * 50 / 150)


def test_found_lesions_are_told_by_size() -> None:
    r, p = np.zeros((1, 60, 60), bool), np.zeros((1, 60, 60), bool)
    r[0, 5:7, 5:7] = r[0, 20:24, 20:24] = r[0, 40:55, 40:55] = True
    p[0, 20:22, 20:22] = p[0, 41:50, 41:50] = True
    p[0, 5:7, 55:57] = True
    rows = compare(r, p, (1.0, 1.0, 1.0)).lesions.by_size()
    assert rows["<3"] == SizeClass(lesions=1, found=0, false=1)
    assert rows["3–5"] == SizeClass(lesions=1, found=1, dice_sum=2 * 4 / 20)
    assert rows["≥10"].scores().recall == 1
    assert (rows["<27 mm³"].lesions, rows["<27 mm³"].found) == (2, 1)
    assert rows["3–5"].scores().f1 == 1
    assert rows["5–10"].scores().recall is None


def test_lesions_of_pictures_lie_in_one_slice_each() -> None:
    """A stack of pictures has the lesions of its pictures, scored each by itself, and numbered through."""
    rng = np.random.default_rng(3)
    reference, prediction = rng.random((5, 40, 40)) > 0.97, rng.random((5, 40, 40)) > 0.97
    reference[1:4, 5:9, 5:9] = prediction[1:3, 6:10, 5:9] = True
    prediction[4] = False
    whole = compare(reference, prediction, per_slice=True).lesions
    parts = [compare(r, p).lesions for r, p in zip(reference, prediction, strict=True)]
    assert whole.counts == tuple(sum(each) for each in zip(*(part.counts for part in parts), strict=True))
    assert [each.lesion.number for each in whole.reference] == list(range(1, len(whole.reference) + 1))
    assert sorted(each.hd95 for each in whole.reference) == sorted(e.hd95 for part in parts for e in part.reference)
    assert {name: row.lesions for name, row in whole.by_size().items()} == {
        name: sum(part.by_size()[name].lesions for part in parts) for name in whole.by_size()
    }
    for each in whole.reference:
        z, y, x = (round(value) for value in each.lesion.centroid_voxel)
        assert each.lesion.box[0] == (z, z + 1)
        for number in each.matched:
            assert whole.prediction[number - 1].box[0] == (z, z + 1)
            assert number not in whole.false
        assert abs(y - each.lesion.box[1][0]) <= 20
        assert abs(x - each.lesion.box[2][0]) <= 20
