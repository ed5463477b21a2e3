"""Detections of full volumes, scored under any post-processing."""

from __future__ import annotations

import numpy as np
import pytest

from metaseg_cli.core.postprocessing import Postprocessing, to_mask
from metaseg_cli.core.training.detections import detect, score_by_size, score_cases


@pytest.mark.parametrize(
    "settings",
    [
        Postprocessing(threshold=0.8, min_size=3),
        Postprocessing(threshold=0.7, high_threshold=0.95),
        Postprocessing(threshold=0.8, min_size=4, keep_confidence=0.9, high_threshold=0.9),
    ],
)
def test_validation_scores_equal_those_of_the_masks(settings: Postprocessing) -> None:
    from metaseg_cli.core.metrics import confusion, lesion_scores, match_lesions

    rng = np.random.default_rng(0)
    pairs = [(rng.random((1, 4, 16, 16)).astype(np.float32), rng.random((1, 4, 16, 16)) > 0.93) for _ in range(4)]
    cases = [detect(f"c{i}", f"p{i % 2}", None, *pair) for i, pair in enumerate(pairs)]
    masks = [to_mask(p[0], settings) for p, _ in pairs]
    matches = [match_lesions(r[0], m) for (_, r), m in zip(pairs, masks, strict=True)]
    lesions = lesion_scores(*(sum(getattr(m, k) for m in matches) for k in ("lesion_tp", "lesion_fp", "lesion_fn")))
    pooled = [confusion(pairs[i][1][0], masks[i]) + confusion(pairs[i + 2][1][0], masks[i + 2]) for i in (0, 1)]
    score = score_cases(cases, [settings])
    assert score.dice == pytest.approx(np.mean([c.scores()["dice"] for c in pooled]))
    assert score.lesion_f1 == pytest.approx(lesions["lesion_f1"])
    assert score.lesion_recall == pytest.approx(lesions["lesion_recall"])
    assert score.false_positives_per_case == pytest.approx(lesions["lesion_fp"] / 4)
    assert sum(each.found for each in score_by_size(cases, [settings])) == lesions["lesion_tp"]
