"""Other programs that run the network say what torch says, and are taken only where they repay."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metaseg_cli.core.choices import BACKENDS, NETWORKS, BackendChoice
from metaseg_cli.core.inference import backends
from metaseg_cli.core.inference.backends import AcceleratedNetwork, accelerate, agree
from metaseg_cli.core.inference.predictor import load_model
from metaseg_cli.core.model_file import Ensemble
from metaseg_cli.errors import ConfigError, InputError
from tests.common import ROOT, small_card

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnx"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dims", "norm"), [(2, "batch"), (3, "batch"), (2, "instance")])
def test_a_backend_says_what_torch_says_at_any_size(backend: str, name: str, dims: int, norm: str) -> None:
    torch.manual_seed(0)
    about = small_card(name, dims, norm)
    network = about.build().eval()
    other = accelerate(network, about, backend, "fp32", CPU)
    with torch.inference_mode():
        for batch, size in ((2, (8, 32, 32)), (2, (8, 32, 32)), (1, (9, 31, 40)), (3, (12, 24, 25))):
            x = torch.randn(batch, 2, *size[-dims:])
            torch.testing.assert_close(other(x), network(x), rtol=0, atol=1e-4)


def test_a_pruned_network_and_an_ensemble_go_through_openvino() -> None:
    torch.manual_seed(0)
    about = small_card("nested-unet")
    members = [about.build().eval().pruned(1) for _ in range(2)]
    x = torch.randn(1, 2, 33, 40)
    with torch.inference_mode():
        ours = Ensemble(members)(x)
        theirs = accelerate(Ensemble(members), about, "openvino", "fp32", CPU)(x)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


class Slow(nn.Module):
    """Says the mean of what it sees, after a while."""

    stride: tuple[int, ...] = (1, 1)
    head_weights: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        backends.time.sleep(0.02)
        return x.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def slow() -> Any:
    return Slow()


def fake_backend(monkeypatch: pytest.MonkeyPatch, seconds: float, convert: Callable[..., object]) -> None:
    """Make *convert* the only backend beside torch; it takes *seconds*."""
    fake = BackendChoice(packages=("torch",), conversion_seconds=seconds, implementation="tests:fake")
    monkeypatch.setattr(backends, "BACKENDS", {"fake": fake})
    monkeypatch.setattr(backends, "_converter", lambda _: convert)


@pytest.mark.parametrize(
    ("follows", "error", "used"), [(10_000, 0.0, "fake"), (10_000, 3.0, "torch"), (10, 0.0, "torch")]
)
def test_auto_takes_what_is_faster_and_agrees_where_it_repays(
    monkeypatch: pytest.MonkeyPatch, follows: int, error: float, used: str
) -> None:
    fake_backend(monkeypatch, 1.0, lambda *_: lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1) + error)
    network = AcceleratedNetwork(slow(), small_card(), "auto", "fp32")
    x = torch.randn(1, 2, 16, 16)
    network.expect(follows * 16 * 16)
    for _ in range(2):
        torch.testing.assert_close(network(x), x.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert network.used == used


def test_what_another_program_raises_leaves_auto_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such operator")

    fake_backend(monkeypatch, 0.0, fails)
    network = AcceleratedNetwork(slow(), small_card(), "auto", "fp32")
    network.expect(1e9)
    network(torch.randn(1, 2, 16, 16))
    assert network.used == "torch"
    with pytest.raises(InputError, match="no such operator"):
        AcceleratedNetwork(slow(), small_card(), "fake", "fp32")(torch.randn(1, 2, 16, 16))


def test_masks_must_agree_and_not_only_most_voxels() -> None:
    ours = torch.full((1, 3, 100, 100), -6.0)
    ours[:, :, :4, :5] = 0.05
    theirs = ours.clone()
    theirs[:, 1:, :1, :1] = -0.05
    assert agree(ours, theirs, small_card())
    theirs[:, 1:, :2, :5] = -0.05
    assert not agree(ours, theirs, small_card())


def test_a_backend_that_cannot_be_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="auto, torch, onnx, openvino"):
        load_model(trained / "model.safetensors", backend="tensorrt")
    missing = dataclasses.replace(BACKENDS["openvino"], packages=("not_there",))
    monkeypatch.setitem(BACKENDS, "openvino", missing)
    with pytest.raises(ConfigError, match="not_there"):
        load_model(trained / "model.safetensors", backend="openvino")
    load_model(trained / "model.safetensors")


def test_the_same_masks_through_openvino(trained: Path) -> None:
    image = np.random.default_rng(0).random((1, 90, 70)).astype(np.float32)
    ours, theirs = (
        load_model(trained / "model.safetensors", backend=each).predict(image) for each in ("torch", "openvino")
    )
    assert (ours.backend, theirs.backend) == ("torch", "openvino")
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=0.01)


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    """It does so when it is imported, and leaves an identifier in the home folder."""
    code = (
        "import torch; from metaseg_cli.core.inference.backends import accelerate;"
        "from tests.common import small_card;"
        "c = small_card(); n = accelerate(c.build().eval(), c, 'openvino', 'fp32', torch.device('cpu'));"
        "n(torch.zeros(1, 2, 32, 32)); import sys; print(sys.modules['openvino_telemetry'])"
    )
    home = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_after_openvino_is_an_interruption(trained: Path) -> None:
    """OpenVINO changes where signals are handled; it must not take that away while it is needed."""
    code = (
        "import os, signal, time, numpy as np; from metaseg_cli.core.inference.predictor import load_model\n"
        f"models = [load_model({str(trained / 'model.safetensors')!r}, backend='openvino') for _ in range(3)]\n"
        "for model in models: model.predict(np.random.rand(1, 64, 64).astype(np.float32))\n"
        "del model\n"
        "while models: del models[0]\n"
        "try: os.kill(os.getpid(), signal.SIGINT); time.sleep(30)  # another thread may have taken it\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
