"""Scores against independent formulas, and what empty masks mean."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as sk_label

from metaseg_cli.core.detection import describe_lesions, label_lesions
from metaseg_cli.core.metrics import Confusion, Protocol, bootstrap_mean, confusion, match_lesions, policy, score
from metaseg_cli.errors import ConfigError, InputError


def masks(seed: int, shape: tuple[int, ...], density: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(shape) < density, rng.random(shape) < density


@pytest.mark.parametrize("shape", [(30, 40), (9, 20, 25)])
@pytest.mark.parametrize("seed", range(4))
def test_overlap_equals_the_definitions_on_sets(seed: int, shape: tuple[int, ...]) -> None:
    r, p = masks(seed, shape, 0.2)
    a, b = set(np.flatnonzero(r)), set(np.flatnonzero(p))
    s = score(r, p)
    assert s["dice"] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
    assert s["iou"] == pytest.approx(len(a & b) / len(a | b))
    assert s["precision"] == pytest.approx(len(a & b) / len(b))
    assert s["recall"] == pytest.approx(len(a & b) / len(a))
    outside = set(range(r.size)) - a
    assert s["specificity"] == pytest.approx(len(outside - b) / len(outside))


def test_dice_is_not_the_jaccard_index() -> None:
    r, p = np.array([[1, 1, 0]]), np.array([[0, 1, 1]])
    assert score(r, p)["dice"] == pytest.approx(0.5)
    assert score(r, p)["iou"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("r", "p", "expected"),
    [
        (
            0,
            0,
            {
                "dice": 1,
                "iou": 1,
                "precision": 1,
                "recall": 1,
                "lesion_precision": 1,
                "lesion_recall": 1,
                "lesion_f1": 1,
            },
        ),
        (
            1,
            0,
            {
                "dice": 0,
                "iou": 0,
                "precision": 0,
                "recall": 0,
                "lesion_precision": 0,
                "lesion_recall": 0,
                "lesion_f1": 0,
            },
        ),
        (
            0,
            1,
            {
                "dice": 0,
                "iou": 0,
                "precision": 0,
                "recall": 0,
                "lesion_precision": 0,
                "lesion_recall": 0,
                "lesion_f1": 0,
            },
        ),
    ],
)
def test_empty_masks_mean_what_the_policy_says(r: int, p: int, expected: dict[str, float]) -> None:
    reference, prediction = np.zeros((2, 5, 5)), np.zeros((2, 5, 5))
    reference[0, 1, 1], prediction[1, 3, 3] = r, p
    s = score(reference, prediction)
    assert {name: s[name] for name in expected} == expected
    assert set(expected) <= set(policy(Protocol()))


def test_missed_lesion_lowers_recall_not_precision() -> None:
    r = np.zeros((20, 20))
    r[2:4, 2:4] = r[10:14, 10:14] = 1
    p = r.copy()
    p[2:4, 2:4] = 0
    s = score(r, p)
    assert (s["lesion_recall"], s["lesion_precision"]) == (0.5, 1.0)
    assert (s["lesion_tp"], s["lesion_fn"], s["lesion_fp"]) == (1, 1, 0)


def test_false_lesion_lowers_precision_not_recall() -> None:
    r = np.zeros((20, 20))
    r[2:4, 2:4] = 1
    p = r.copy()
    p[15, 15] = 1
    s = score(r, p)
    assert (s["lesion_recall"], s["lesion_precision"], s["lesion_fp"]) == (1.0, 0.5, 1)


def test_one_touching_voxel_finds_a_lesion() -> None:
    r, p = np.zeros((9, 9)), np.zeros((9, 9))
    r[2:6, 2:6] = 1
    p[5, 5:9] = 1
    assert match_lesions(r, p).found == (True,)


@pytest.mark.parametrize("shape", [(40, 50), (10, 20, 25), (1, 30, 30)])
@pytest.mark.parametrize("seed", range(3))
def test_components_are_those_of_an_independent_library(seed: int, shape: tuple[int, ...]) -> None:
    mask, _ = masks(seed, shape, 0.08)
    labels, count = label_lesions(mask)
    expected, wanted = sk_label(mask, connectivity=len(shape), return_num=True)
    assert count == wanted
    pairs = np.unique(np.column_stack([labels[mask], expected[mask]]), axis=0)
    assert len(pairs) == count


def test_corners_connect_in_two_and_three_dimensions() -> None:
    assert label_lesions(np.eye(4))[1] == 1
    diagonal = np.zeros((3, 3, 3))
    diagonal[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = 1
    assert label_lesions(diagonal)[1] == 1


def test_lesions_are_described_as_counting_by_hand_does() -> None:
    mask, _ = masks(7, (12, 30, 30), 0.02)
    spacing = (3.0, 0.5, 0.5)
    probability = np.random.default_rng(1).random(mask.shape).astype(np.float32)
    ours = describe_lesions(mask, spacing, probability)
    labels, count = sk_label(mask, connectivity=3, return_num=True)
    by_hand = {tuple(np.argwhere(labels == n).mean(axis=0).round(6)): labels == n for n in range(1, count + 1)}
    assert len(ours) == count
    for lesion in ours:
        inside = by_hand[tuple(np.round(lesion.centroid_voxel, 6))]
        assert lesion.voxels == inside.sum()
        assert lesion.confidence == pytest.approx(probability[inside].mean(), abs=1e-6)
        assert lesion.volume_mm3 == pytest.approx(lesion.voxels * 0.75)
        assert lesion.equivalent_diameter == pytest.approx((6 * lesion.volume_mm3 / np.pi) ** (1 / 3))
        assert [(i.min(), i.max() + 1) for i in np.nonzero(inside)] == list(lesion.box)
    assert [x.number for x in ours] == list(range(1, len(ours) + 1))


def test_a_discs_diameter_in_a_picture_is_its_diameter() -> None:
    y, x = np.mgrid[-40:41, -40:41]
    disc = (np.hypot(y, x) <= 20)[None]
    assert describe_lesions(disc)[0].equivalent_diameter == pytest.approx(40, abs=1)
    assert describe_lesions(disc, (5.0, 0.5, 0.5))[0].equivalent_diameter == pytest.approx(20, abs=0.5)


def test_a_picture_without_a_slice_axis_is_described_like_one_slice() -> None:
    mask, _ = masks(5, (30, 40), 0.05)
    probability = np.random.default_rng(2).random(mask.shape)
    assert describe_lesions(mask, None, probability) == describe_lesions(mask[None], None, probability[None])


def test_nothing_to_describe_is_no_lesion() -> None:
    assert describe_lesions(np.zeros((3, 8, 8)), (1.0, 1.0, 1.0), np.zeros((3, 8, 8))) == []


def test_volumes_are_ml_with_spacing_and_voxels_without() -> None:
    r, p = np.ones((10, 10, 10)), np.zeros((10, 10, 10))
    assert score(r, p, (1.0, 1.0, 1.0))["volume_ml_reference"] == pytest.approx(1.0)
    assert score(r, p)["volume_px_reference"] == 1000


def test_patients_pool_by_adding_their_counts() -> None:
    r, p = masks(3, (8, 20, 20), 0.2)
    whole = confusion(r, p)
    parts = sum((confusion(a, b) for a, b in zip(r, p, strict=True)), start=Confusion())
    assert parts == whole


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="shape"):
        score(np.zeros((3, 3)), np.zeros((3, 4)))


def test_channels_are_not_taken_for_an_axis_of_the_image() -> None:
    with pytest.raises(InputError, match="4 axes"):
        score(np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 3, 3)))


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(ConfigError, match="protocol"):
        score(np.zeros((3, 3)), np.zeros((3, 3)), protocol="mine")


def test_the_interval_resamples_patients_not_cases() -> None:
    values = np.repeat([0.0, 1.0], 100)
    as_cases = bootstrap_mean(list(values), [str(i) for i in range(200)])
    as_two_patients = bootstrap_mean(list(values), ["a"] * 100 + ["b"] * 100)
    assert as_cases[0] == as_two_patients[0] == 0.5
    assert as_cases[1][1] - as_cases[1][0] < 0.2
    assert as_two_patients[1] == (0.0, 1.0)


def test_one_patient_has_no_interval() -> None:
    mean, (low, high) = bootstrap_mean([0.2, 0.4], ["a", "a"])
    assert mean == pytest.approx(0.3)
    assert np.isnan(low)
    assert np.isnan(high)


def test_the_interval_is_that_of_an_independent_resampling() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 40)
    _, (low, high) = bootstrap_mean(list(values), [str(i) for i in range(40)])
    from scipy.stats import bootstrap

    other = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.01)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_value_without_a_number_is_never_dropped_from_a_mean(missing: float | None) -> None:
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_mean([0.5, missing], ["a", "b"])  # type: ignore[list-item]
