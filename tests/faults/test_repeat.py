"""A share of the repeated calls of predict: the same masks whatever else is predicted, and however."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.repeat import BACKENDS, calls, make_model, repeat


def test_the_calls_differ_in_order_size_and_surroundings() -> None:
    scans = [Path(name) for name in "abcde"]
    planned = calls(scans, 20, 0)
    assert len(planned) == 20
    assert {call.backend for call in planned} == set(BACKENDS)
    assert len({call.scans for call in planned}) > 10
    assert len({len(call.scans) for call in planned}) > 3
    assert {call.cold for call in planned} == {True, False}


@pytest.mark.slow
def test_repeated_calls_give_the_same_masks(tmp_path: Path) -> None:
    model, scans = make_model(tmp_path)
    assert repeat(model, scans, 6, 0, tmp_path / "calls") == []
