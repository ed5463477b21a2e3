"""The table of metrics: every number has a row, and every row with a policy says what empty masks mean."""

from __future__ import annotations

import numpy as np
import pytest

from metaseg_cli.core.choices import PROTOCOLS, find_protocol
from metaseg_cli.core.metrics import compare
from metaseg_cli.core.metrics.table import (
    CHARTED_DISTANCES,
    CHARTED_SCORES,
    COMPARED,
    METRICS,
    meaning_of_empty,
    metric_of,
    policy,
)

MASK = np.zeros((3, 9, 9), bool)
MASK[1, 2:5, 2:5] = True


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0)])
def test_every_number_has_a_row(protocol: str, spacing: tuple[float, float, float] | None) -> None:
    scores = compare(MASK, MASK, spacing, find_protocol(protocol)).scores
    assert all(name.startswith(metric_of(name).name) for name in scores)


def test_a_name_that_no_metric_has_is_an_error() -> None:
    for name in ("", "unknown", "lesion_unknown", "_mm", "volume_similarity", "dice_new"):
        with pytest.raises(KeyError):
            metric_of(name)


def test_names_are_told_apart_by_their_longest_row() -> None:
    names = {"hd_mm": "hd", "hd95_px": "hd95", "nsd_2mm": "nsd", "lesion_f1_small": "lesion_f1_small"}
    assert {name: metric_of(name).name for name in names} == names


def test_distances_and_errors_are_better_when_lower() -> None:
    lower = {metric.name for metric in METRICS if metric.lower_is_better}
    assert lower == {"hd", "hd95", "assd", "lesion_fp", "lesion_fn", "lesion_wise_hd95", "sq_hd95"}


def test_what_is_compared_and_charted_exists() -> None:
    scores = compare(MASK, MASK, (1.0, 1.0, 1.0)).scores
    assert all(name.format(unit="mm") in scores for name in COMPARED)
    charted = (*CHARTED_SCORES, *CHARTED_DISTANCES)
    assert all(metric_of(name).title for name in charted)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_of_masks_and_lesions_say_what_empty_masks_mean(protocol: str) -> None:
    rules = find_protocol(protocol)
    meanings = policy(rules)
    for name in compare(MASK, MASK, (1.0, 1.0, 1.0), rules).scores:
        counted = metric_of(name).name.startswith(("volume", "lesions_", "lesion_t", "lesion_fp", "lesion_fn", "sq_"))
        assert counted or meaning_of_empty(name, meanings), name
