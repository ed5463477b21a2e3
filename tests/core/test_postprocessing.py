"""From probabilities to masks and label maps."""

from __future__ import annotations

import numpy as np

from metaseg_cli.core.label_maps import to_label_map
from metaseg_cli.core.postprocessing import Postprocessing, to_mask


def test_postprocessing_drops_only_what_is_small() -> None:
    probability = np.zeros((1, 20, 20), np.float32)
    probability[0, 2:6, 2:6], probability[0, 15, 15] = 0.9, 0.9
    assert to_mask(probability, Postprocessing()).sum() == 17
    assert to_mask(probability, Postprocessing(min_size=2)).sum() == 16
    assert to_mask(probability, Postprocessing(threshold=0.95)).sum() == 0


def test_a_lesion_counts_where_it_is_bright_somewhere() -> None:
    probability = np.zeros((1, 20, 20), np.float32)
    probability[0, 2:6, 2:6], probability[0, 3, 3], probability[0, 12:16, 12:16] = 0.4, 0.9, 0.6
    mask = to_mask(probability, Postprocessing(threshold=0.3, high_threshold=0.8))
    assert mask[0, 2:6, 2:6].all()
    assert mask.sum() == 16


def test_a_small_lesion_is_spared_when_it_is_sure() -> None:
    probability = np.zeros((4, 20, 20), np.float32)
    probability[1, 2, 2:4], probability[2, 12, 12:14] = 0.95, 0.6
    settings = Postprocessing(min_size=4.5, keep_confidence=0.9)
    assert to_mask(probability, settings, (1.0, 1.5, 1.5)).sum() == 4  # 2 voxels are 4.5 mm³
    assert np.argwhere(to_mask(probability, settings, (1.0, 1.0, 1.0))).tolist() == [[1, 2, 2], [1, 2, 3]]


def test_holes_are_filled_when_asked() -> None:
    probability = np.zeros((5, 9, 9), np.float32)
    probability[1:4, 2:7, 2:7] = 0.9
    probability[2, 4, 4] = 0
    assert to_mask(probability, Postprocessing(fill_holes=True)).sum() == 75
    assert to_mask(probability[2:3], Postprocessing(fill_holes=True)).sum() == 25
    assert to_mask(probability, Postprocessing()).sum() == 74


def test_settings_for_calibrated_probabilities_give_the_same_mask() -> None:
    logit = np.random.default_rng(0).normal(0, 3, (6, 30, 30))
    settings = Postprocessing(threshold=0.6, high_threshold=0.9, min_size=3, keep_confidence=0.8)
    raw, divided = (1 / (1 + np.exp(-logit / t)) for t in (1.0, 2.5))
    np.testing.assert_array_equal(to_mask(raw, settings), to_mask(divided, settings.calibrated(2.5)))


def test_nested_regions_are_painted_outermost_first() -> None:
    regions = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    masks = np.stack([np.isin(label, v) for v in regions.values()])
    np.testing.assert_array_equal(to_label_map(masks, regions), label)
