"""The search for post-processing at each operating point, and for the temperature."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from metaseg_cli.core.choices import OPERATING_POINTS
from metaseg_cli.core.detection import label_lesions
from metaseg_cli.core.postprocessing import to_mask
from metaseg_cli.core.training.detections import CaseDetections, detect
from metaseg_cli.core.training.select_postprocessing import choose_temperature, select_postprocessing

Masks = tuple[NDArray[np.float32], NDArray[np.bool_]]


def _scene(seed: int, *, slices: int, false: int, sure: float = 0.9) -> Masks:
    """Probabilities and reference ``(1, Z, Y, X)``: three lesions that are found, and *false* false-positive voxels."""
    rng = np.random.default_rng(seed)
    probability = np.zeros((1, slices, 48, 48), np.float32)
    reference = np.zeros(probability.shape, bool)
    for x in (4, 16, 28):
        z, side = int(rng.integers(slices)), int(rng.integers(2, 7))
        reference[0, z, 4 : 4 + side, x : x + side] = True
    probability[reference] = sure
    for i in range(false):
        probability[0, int(rng.integers(slices)), 40, 3 + 4 * i] = 0.9
    return probability, reference


def _detected(scenes: list[Masks], *, per_slice: bool) -> list[CaseDetections]:
    return [detect(f"c{i}", f"p{i}", None, *scene, per_slice=per_slice) for i, scene in enumerate(scenes)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    smallest=st.integers(1, 40),
    per_slice=st.booleans(),
    point=st.sampled_from(sorted(OPERATING_POINTS)),
)
def test_nothing_as_large_as_the_smallest_training_lesion_is_removed_by_its_size(
    seed: int, smallest: int, per_slice: bool, point: str
) -> None:
    scenes = [_scene(seed + i, slices=4, false=10) for i in range(4)]
    chosen = select_postprocessing(_detected(scenes, per_slice=per_slice), {"m": float(smallest)}, ["m"], point)
    found = chosen.postprocessing["m"]
    assert found.per_slice == per_slice
    sure = np.zeros((4, 48, 48), np.float32)
    sizes = np.random.default_rng(seed).permutation([smallest, smallest + 1, smallest + 7])
    for z, size in enumerate(sizes):  # as sure as can be, so that nothing but its size could remove one
        sure[z].flat[48 * 4 * z : 48 * 4 * z + size] = 1.0
    mask = to_mask(sure, found)
    assert label_lesions(mask, per_slice=per_slice)[1] == 3
    assert mask.sum() == sizes.sum()


def test_a_lesion_is_measured_in_its_slice_where_slices_are_predicted_apart() -> None:
    # A lesion through ten slices: 40 voxels in the stack, 4 in each picture that predict will meet.
    probability = np.zeros((1, 10, 30, 30), np.float32)
    probability[0, :, 4:6, 4:6] = 0.9
    cases = [detect("c", "p", None, probability, probability > 0, per_slice=apart) for apart in (True, False)]
    assert [case.regions[0].lesion_voxels.tolist() for case in cases] == [[4] * 10, [40]]


def test_the_filter_takes_specks_that_no_training_lesion_is_as_small_as() -> None:
    scenes = [_scene(i, slices=1, false=10) for i in range(6)]
    cases = _detected(scenes, per_slice=True)
    assert select_postprocessing(cases, {"m": 4.0}, ["m"]).postprocessing["m"].min_size == 4
    assert select_postprocessing(cases, {"m": 1.0}, ["m"]).postprocessing["m"].min_size == 0


def test_what_cannot_be_told_apart_leaves_the_plainest_setting() -> None:
    scenes = [_scene(i, slices=2, false=0) for i in range(6)]
    chosen = select_postprocessing(_detected(scenes, per_slice=True), {"m": 4.0}, ["m"])
    for point in chosen.operating_points.values():
        assert point.postprocessing["m"].min_size == 0
        assert point.postprocessing["m"].high_threshold == 0
        assert point.postprocessing["m"].threshold == pytest.approx(0.5)


def test_each_operating_point_keeps_to_its_rule_and_says_its_price() -> None:
    scenes = []
    for i in range(8):
        probability, reference = _scene(i, slices=2, false=2)
        probability[0, 0, 40, 3] = 0.95
        scenes.append((probability, reference))
        probability[0, 1, 30:33, 40:43], reference[0, 1, 30:33, 40:43] = 0.35, True  # a faint lesion in every case
        probability[0, 1, 44, 40] = 0.35 if i < 6 else 0.0  # and a faint speck in most
    points = select_postprocessing(_detected(scenes, per_slice=True), {"m": 1.0}, ["m"]).operating_points
    by_name = {name: point.validation["m"] for name, point in points.items()}
    assert by_name["specific"].false_per_case <= 0.1
    assert by_name["specific"].lesion_recall <= by_name["sensitive"].lesion_recall
    for name in ("sensitive", "balanced"):
        low, high = by_name[name].lesion_recall_ci95 or (1.0, 0.0)
        assert low <= by_name[name].lesion_recall <= high
    assert sum(each.lesions for each in by_name["balanced"].by_size) == sum(
        label_lesions(reference[0], per_slice=True)[1] for _, reference in scenes
    )


def test_sensitive_finds_the_faint_lesion_that_plain_misses() -> None:
    scenes = []
    for i in range(8):
        probability, reference = _scene(i, slices=2, false=0)
        probability[0, 1, 30:33, 40:43], reference[0, 1, 30:33, 40:43] = 0.35, True
        scenes.append((probability, reference))
    chosen = select_postprocessing(_detected(scenes, per_slice=True), {"m": 1.0}, ["m"])
    assert chosen.operating_points["sensitive"].validation["m"].lesion_recall == 1.0
    assert chosen.score is not None
    assert chosen.score.small_lesion_recall == 1.0


def test_the_price_of_every_limit_is_said() -> None:
    scenes = [_scene(i, slices=2, false=1) for i in range(4)]
    curve = select_postprocessing(_detected(scenes, per_slice=True), {"m": 1.0}, ["m"]).froc["m"]
    recalls = [each.lesion_recall for each in curve]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    assert [each.false_per_case for each in curve] == [0.1, 0.25, 0.5, 1.0, 2.0, 4.0]


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (1, 8, 64, 64))
    reference = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    overconfident = 1 / (1 + np.exp(-2.5 * logit))
    assert choose_temperature([detect("c", "p", None, overconfident, reference)]) == pytest.approx(2.5, rel=0.05)
