"""The ONNX file says what torch says, at any size, and its description is complete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import metaseg_cli
from metaseg_cli.commands import export as command
from metaseg_cli.commands.export import export
from metaseg_cli.config import ExportConfig
from metaseg_cli.core.inference.export import export_onnx, greatest_difference
from metaseg_cli.core.inference.predictor import Model
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError
from tests.common import ROOT, small_card

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dims", "norm"),
    [("attention-unet", 2, "batch"), ("attention-unet", 3, "batch"), ("nested-unet", 2, "batch")],
)
def test_onnx_agrees_with_torch_at_any_size(tmp_path: Path, name: str, dims: int, norm: str) -> None:
    torch.manual_seed(0)
    about = small_card(name, dims, norm)
    model = Model(about.build().eval(), about, torch.device("cpu"), tmp_path / "model.safetensors")
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    rng = np.random.default_rng(0)
    for batch, size in ((1, (9, 31, 40)), (3, (12, 24, 25)), (2, (8, 32, 32))):
        image = rng.normal(size=(batch, 2, *size[-dims:])).astype(np.float32)
        assert greatest_difference(model, path, image) < 1e-4
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["input"]["channels"] == ["t1c", "t2f"]
    assert described["output"]["channels"] == ["ET", "TC", "WT"]
    assert described["postprocessing"]["ET"]["threshold"] == 0.4
    assert described["regions"]["TC"] == [1, 3]


def test_the_command_exports_a_run_and_checks_it(trained: Path, raw: Path, tmp_path: Path) -> None:
    scan = raw / "train" / "patient001" / "patient001_02.png"
    out = tmp_path / "new" / "metastases.onnx"
    result = export(ExportConfig(model=str(trained), out=out, check=scan), Silent())
    assert result.difference < 1e-3
    assert result.checked_on == str(scan)
    assert {p.name for p in out.parent.iterdir()} == {"metastases.onnx", "metastases.json"}
    with pytest.raises(InputError, match="--overwrite"):
        export(ExportConfig(model=str(trained), out=out), Silent())
    with pytest.raises(InputError, match=r"\.onnx"):
        export(ExportConfig(model=str(trained), out=tmp_path / "x.txt"), Silent())


@pytest.mark.slow
def test_what_a_killed_export_left_is_replaced(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    export(ExportConfig(model=str(trained), out=out), Silent())
    out.unlink()  # the model comes last
    export(ExportConfig(model=str(trained), out=out), Silent())
    out.unlink()
    out.with_suffix(".json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="exists already"):
        export(ExportConfig(model=str(trained), out=out), Silent())


def test_a_file_that_disagrees_is_not_kept(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "greatest_difference", lambda *_: 0.2)
    with pytest.raises(InputError, match="differ from torch"):
        export(ExportConfig(model=str(trained), out=tmp_path / "m.onnx"), Silent())
    assert not list(tmp_path.iterdir())


def test_the_model_still_predicts_after_its_export(trained: Path, raw: Path, tmp_path: Path) -> None:
    file = shutil.copy(trained / "model.safetensors", tmp_path)
    model = metaseg_cli.load_model(file, "cpu")
    scan = raw / "train" / "patient001" / "patient001_02.png"
    before = model.predict(scan).probabilities
    export_onnx(model, tmp_path / "m.onnx")
    np.testing.assert_allclose(model.predict(scan).probabilities, before, atol=0.02)


def client(*arguments: object) -> str:
    """Return what the example says, which must be one line, in place of a mask."""
    command = [sys.executable, str(ROOT / "examples" / "onnx_client.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_the_client_says_what_it_cannot_segment(raw: Path, tmp_path: Path) -> None:
    picture, model = next(raw.rglob("*_02.png")), tmp_path / "model.onnx"
    model.write_bytes(b"")
    about: dict[str, object] = {"dims": 2, "sequences": ["grey"]}
    mask, described = tmp_path / "mask.png", model.with_suffix(".json")
    assert client(model, picture, mask) == (
        f"{described}: not the description of an exported model; metaseg export writes it beside the model"
    )
    described.write_text(json.dumps(about | {"dims": 3}))
    assert client(model, picture, mask).startswith(f"{model}: a 3D model; this client segments pictures with 2D")
    described.write_text(json.dumps(about))
    volume = tmp_path / "scan.nii.gz"
    volume.write_bytes(b"\x1f\x8b")
    assert client(model, volume, mask).startswith(f"{volume}: not a picture that Pillow reads")
    assert client(model, tmp_path / "no.png", mask) == f"{tmp_path / 'no.png'}: no such file"
    assert not mask.exists()
