"""A mask format is one row: whoever adds one finds it in the command line and in what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from metaseg_cli.commands.predict import predict
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.choices import MASK_FORMATS, MaskFormat
from metaseg_cli.core.images.mask_formats import MaskToWrite, mask_writer
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError


def write_npz(path: Path, mask: MaskToWrite) -> None:
    """A writer as a contributor would add it."""
    np.savez_compressed(path, label=mask.label, affine=mask.image.affine)


def test_a_format_is_added_by_one_row(
    trained: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = raw / "train" / "patient001" / "patient001_02.png"
    with pytest.raises(ConfigError, match="npz"):
        PredictConfig(inputs=(str(scan),), format="npz")
    row = MaskFormat(suffix=".npz", writer="tests.core.inference.test_mask_output:write_npz")
    monkeypatch.setitem(MASK_FORMATS, "npz", row)
    config = PredictConfig(
        inputs=(str(scan),), model=str(trained), out=tmp_path / "out", format="npz", probabilities=True, threshold=0.02
    )
    (predicted,) = predict(config, Silent(), keep=True).scans
    with np.load(tmp_path / "out" / "patient001_02_mask.npz") as written:
        np.testing.assert_array_equal(written["label"], predicted.prediction.mask)
    assert (tmp_path / "out" / "patient001_02_probability.png").exists()  # maps stay in the scan's own format


@pytest.mark.parametrize("name", MASK_FORMATS)
def test_every_format_has_a_writer_and_a_suffix(name: str) -> None:
    assert callable(mask_writer(name))
    assert MASK_FORMATS[name].suffix.startswith(".")
