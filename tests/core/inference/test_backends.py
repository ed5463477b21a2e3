"""Other programs that run the network say what torch says, and the same answer every time."""

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
from metaseg_cli.core.inference import backends, compiled_cache
from metaseg_cli.core.inference.backends import (
    AcceleratedNetwork,
    accelerate,
    automatic_backend,
    decide_together,
    largest_difference,
    reference_window,
)
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


class Mean(nn.Module):
    """Says the mean of what it sees."""

    stride: tuple[int, ...] = (1, 1)
    head_weights: tuple[float, ...] = (1.0,)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def mean() -> Any:
    return Mean()


def fake_backend(monkeypatch: pytest.MonkeyPatch, convert: Callable[..., object]) -> None:
    """Make *convert* the only backend beside torch."""
    fake = BackendChoice(packages=("torch",), automatic=True, implementation="tests:fake")
    monkeypatch.setattr(backends, "BACKENDS", {"fake": fake})
    monkeypatch.setattr(backends, "_converter", lambda _: convert)


@pytest.mark.parametrize(("error", "used"), [(0.0, "fake"), (0.005, "fake"), (0.007, "torch"), (3.0, "torch")])
def test_auto_takes_what_agrees_with_torch_to_a_thousandth(
    monkeypatch: pytest.MonkeyPatch, error: float, used: str
) -> None:
    """The card's temperature is 1.5 and a sigmoid's slope at most 1/4: logits 0.006 apart are 0.001 apart."""
    fake_backend(monkeypatch, lambda *_: lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1) + error)
    network = AcceleratedNetwork(mean(), small_card(), "auto", "fp32")
    x = torch.randn(1, 2, 16, 16)
    for _ in range(2):
        expected = x.mean(1, keepdim=True).expand(-1, 3, -1, -1) + (error if used == "fake" else 0.0)
        torch.testing.assert_close(network(x), expected)
    assert network.used == used
    assert ("more than 0.001" in network.note) == (used == "torch")


def test_the_choice_does_not_depend_on_what_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the size of a window, nor its values, nor a clock."""
    seen: list[Tensor] = []

    def convert(*_: object) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean(1, keepdim=True).expand(-1, 3, -1, -1)

        return run

    fake_backend(monkeypatch, convert)
    for x in (torch.zeros(1, 2, 16, 16), torch.full((3, 2, 90, 70), 1e9)):
        AcceleratedNetwork(mean(), small_card(), "auto", "fp32")(x)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0], reference_window(small_card()))
    assert seen[0].shape == (1, 2, 32, 32)


def test_all_networks_of_an_ensemble_take_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    number = iter(range(2))

    def convert(*_: object) -> Callable[[Tensor], Tensor]:
        error = 3.0 * next(number)
        return lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1) + error

    fake_backend(monkeypatch, convert)
    members = [AcceleratedNetwork(mean(), small_card(), "auto", "fp32") for _ in range(2)]
    decide_together(members)
    assert [member.used for member in members] == ["torch", "torch"]
    assert all("differ" in member.note for member in members)


def test_what_another_program_raises_leaves_auto_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such operator")

    fake_backend(monkeypatch, fails)
    network = AcceleratedNetwork(mean(), small_card(), "auto", "fp32")
    network(torch.randn(1, 2, 16, 16))
    assert network.used == "torch"
    assert "no such operator" in network.note
    with pytest.raises(InputError, match="no such operator"):
        AcceleratedNetwork(mean(), small_card(), "fake", "fp32")(torch.randn(1, 2, 16, 16))


def test_norms_whose_sums_depend_on_threads_stay_with_torch() -> None:
    assert automatic_backend(small_card(norm="batch")) == "openvino"
    assert automatic_backend(small_card(norm="instance")) == "torch"


def test_a_number_that_is_none_does_not_agree() -> None:
    ours, theirs = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    theirs[0, 0, 0, 0] = float("nan")
    assert largest_difference(ours, theirs, small_card()) == 1


def logits_of(network: nn.Module, *sizes: tuple[int, ...]) -> list[Tensor]:
    """The network's answers on noise of these sizes, always the same noise for the same size."""
    found = []
    with torch.inference_mode():
        for size in sizes:
            x = torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))
            found.append(network(x))
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dims", [2, 3])
def test_openvino_gives_the_same_bits_in_any_order_and_from_its_cache(
    dims: int, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    about = small_card("nested-unet", dims)
    network = about.build().eval()
    sizes = [(1, 2, *(8, 64, 64)[-dims:]), (3, 2, *(8, 40, 32)[-dims:]), (2, 2, *(9, 33, 70)[-dims:])]
    first = logits_of(accelerate(network, about, "openvino", precision, CPU), *sizes)  # compiled
    (kept,) = tmp_path.glob("metaseg/compiled/*")
    again = logits_of(accelerate(network, about, "openvino", precision, CPU), *reversed(sizes))  # from the cache
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [kept.name]
    kept.write_bytes(kept.read_bytes()[:-100])  # damaged: compiled again
    repaired = logits_of(accelerate(network, about, "openvino", precision, CPU), sizes[1], sizes[0], sizes[2])
    for one, two, three in zip(first, reversed(again), (repaired[1], repaired[0], repaired[2]), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_openvino_gives_the_same_bits_with_another_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    about, before = small_card(), torch.get_num_threads()
    network = about.build().eval()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += logits_of(accelerate(network, about, "openvino", "fp32", CPU), (1, 2, 96, 96))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("damage", ["unwritable", "file", "others"])
def test_a_cache_that_cannot_be_used_never_matters(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if damage == "unwritable":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    elif damage == "file":
        (tmp_path / "cache").write_text("not a folder")
    else:  # where other users may write, nothing is read and nothing kept
        (tmp_path / "cache" / "metaseg" / "compiled").mkdir(parents=True)
        (tmp_path / "cache" / "metaseg" / "compiled").chmod(0o777)
    torch.manual_seed(0)
    about = small_card()
    network = about.build().eval()
    ours = logits_of(accelerate(network, about, "torch", "fp32", CPU), (1, 2, 32, 32))
    theirs = logits_of(accelerate(network, about, "openvino", "fp32", CPU), (1, 2, 32, 32))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert not list(tmp_path.rglob("*.openvino"))


def test_the_cache_holds_few_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(20):
        compiled_cache.keep_bytes(f"{number}.openvino", bytes([number]))
    assert len(list(compiled_cache.cache_folder().iterdir())) == 16
    assert compiled_cache.kept_bytes("19.openvino") == bytes([19])
    assert compiled_cache.kept_bytes("0.openvino") is None


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
    home = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_CACHE_HOME": "/proc/nowhere"}
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
