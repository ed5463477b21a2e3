"""The picture of a case: the slice on which its regions differ most."""

from __future__ import annotations

import numpy as np

from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.metrics.cases import MaskPair, ScoringRules, score_case


def test_regions_that_are_swapped_are_shown_although_they_cover_the_same_voxels() -> None:
    inner, outer = np.zeros((4, 12, 12), bool), np.zeros((4, 12, 12), bool)
    outer[:, 2:10, 2:10] = inner[:, 4:8, 4:8] = True
    inner[0] = outer[0]  # the largest inner region, and nothing to mix up
    swapped = [inner.copy(), outer.copy()]
    for mask, other in zip(swapped, (outer, inner), strict=True):
        mask[2] = other[2]
    pairs = {
        name: MaskPair(reference=reference, prediction=prediction)
        for name, reference, prediction in zip(("ET", "WT"), (inner, outer), swapped, strict=True)
    }
    rules = ScoringRules(protocol=Protocol(), tolerances=(1.0,))
    picture = score_case("a", "a", pairs, None, rules, image=np.arange(4.0).repeat(144).reshape(1, 4, 12, 12)).picture
    assert picture.image is not None
    assert (picture.image == 2).all()
    np.testing.assert_array_equal(picture.reference, [inner[2], outer[2]])
    np.testing.assert_array_equal(picture.prediction, [outer[2], inner[2]])
