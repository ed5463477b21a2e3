"""Number format and memory format: measured only where there is a choice, and time for it."""

from __future__ import annotations

import pytest
import torch

from metaseg_cli.config import TrainConfig
from metaseg_cli.core.training import precision
from metaseg_cli.core.training.precision import ComputeFormat, choose_compute_format
from tests.common import small_card


def test_nothing_is_measured_where_both_formats_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not(*_: object) -> float:
        raise AssertionError("a pass was made")

    monkeypatch.setattr(precision, "_time_of_pass", must_not)
    config = TrainConfig(precision="fp32", memory_format="channels-last")
    found = choose_compute_format(small_card().build(), torch.zeros(1, 2, 32, 32), "batch", config)
    assert found == (ComputeFormat("fp32", True), "as asked")


def test_measuring_ends_when_it_takes_too_long_and_the_usual_format_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[ComputeFormat] = []

    def slow(_model: object, _image: object, compute: ComputeFormat) -> float:
        passes.append(compute)
        return 3.0 if compute.channels_last else 1.0

    monkeypatch.setattr(precision, "_time_of_pass", slow)
    model, patch = small_card().build(), torch.zeros(1, 2, 32, 32)
    config = TrainConfig(precision="fp32")
    usual, why = choose_compute_format(model, patch, "batch", config, most_seconds=5.0)
    assert (usual, len(passes)) == (passes[0], 3)
    assert "takes too long" in why
    chosen, why = choose_compute_format(model, patch, "batch", config)
    assert not chosen.channels_last
    assert "1000 ms" in why
