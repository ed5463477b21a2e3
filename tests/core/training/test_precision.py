"""Number format and memory format: measured only where there is a choice."""

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
    assert found == (ComputeFormat("fp32", True), {})
