"""Lesions as components: one definition for training, scoring and prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from metaseg_cli.core.detection import (
    SIZE_CLASSES,
    component_values,
    describe_labels,
    find_lesions,
    label_lesions,
    overlaps,
    selection_score,
)
from metaseg_cli.core.metrics.froc import find_candidates
from metaseg_cli.core.postprocessing import Postprocessing, to_mask
from metaseg_cli.core.training.detections import detect, score_by_size


@pytest.mark.parametrize(("diameter", "name"), [(0.5, "<3"), (2.999, "<3"), (3.0, "3–5"), (10.0, "≥10"), (99, "≥10")])
def test_a_lesion_on_the_edge_of_a_size_class_belongs_to_the_one_above(diameter: float, name: str) -> None:
    assert [str(each) for each in SIZE_CLASSES if diameter in each] == [name]


def test_training_counts_a_lesion_of_three_millimetres_as_evaluation_does() -> None:
    # One voxel whose volume is that of a sphere of exactly 3 mm.
    side = (math.pi * 3.0**3 / 6) ** (1 / 3)
    reference = np.zeros((1, 3, 5, 5), bool)
    reference[0, 1, 2, 2] = True
    cases = [detect("case", "patient", (side, side, side), reference.astype(np.float32), reference)]
    diameter = find_lesions(reference[0], (side, side, side))[1][0].equivalent_diameter
    found = score_by_size(cases, [Postprocessing()])
    assert [each.found for each in found] == [int(diameter in each) for each in SIZE_CLASSES]


def test_overlaps_are_the_pairs_that_share_voxels() -> None:
    rng = np.random.default_rng(0)
    (first, n), (second, m) = (label_lesions(rng.random((6, 20, 20)) > 0.9) for _ in range(2))
    expected = {
        (i, j): shared
        for i in range(1, n + 1)
        for j in range(1, m + 1)
        if (shared := int(((first == i) & (second == j)).sum()))
    }
    pairs, voxels = overlaps(first, second)
    assert dict(zip(map(tuple, pairs.tolist()), voxels.tolist(), strict=True)) == expected
    assert not len(overlaps(first, np.zeros_like(first))[0])


def test_confidence_is_the_mean_probability_wherever_it_is_shown() -> None:
    probability = np.zeros((1, 9, 9), np.float32)
    probability[0, 1, 1:4] = (0.6, 0.8, 0.7)
    candidates = find_candidates(probability > 2, probability)
    (lesion,) = find_lesions(probability >= 0.5, probability=probability)[1]
    assert candidates.confidence == (lesion.confidence,)
    assert lesion.confidence == pytest.approx(0.7)


def test_the_confidence_of_post_processing_moves_with_the_temperature() -> None:
    logit = np.random.default_rng(0).normal(1, 2, (1, 4, 4))
    labels = np.ones((1, 4, 4), np.int32)
    once, cooled = (component_values(labels, 1, 1 / (1 + np.exp(-logit / t))).logit_confidence[0] for t in (1.0, 2.0))
    assert math.log(cooled / (1 - cooled)) == pytest.approx(math.log(once / (1 - once)) / 2, rel=1e-5)


@pytest.mark.parametrize(("min_size", "kept"), [(3.0, True), (3.001, False)])
def test_a_lesion_of_exactly_the_minimum_size_stays(min_size: float, kept: bool) -> None:
    probability = np.zeros((2, 5, 5), np.float32)
    probability[0, 2, 1:4] = 0.9
    assert bool(to_mask(probability, Postprocessing(min_size=min_size), (1.0, 1.0, 1.0)).any()) == kept


def test_descriptions_follow_the_order_of_the_labels() -> None:
    labels = np.array([[[1, 0, 2, 2]]], np.int32)
    assert [(each.number, each.voxels) for each in describe_labels(labels, 2)] == [(1, 1), (2, 2)]


def test_dice_and_lesion_f1_count_alike_in_selection() -> None:
    assert selection_score(0.4, 0.8, 0.9) == pytest.approx(0.7)
