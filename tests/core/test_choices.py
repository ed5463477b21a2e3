"""A choice is one row of a table: here a network that no other file of the package knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from metaseg_cli.commands.predict import predict
from metaseg_cli.commands.train import train
from metaseg_cli.config import PredictConfig, TrainConfig
from metaseg_cli.config.setting import settings_of
from metaseg_cli.core import choices
from metaseg_cli.core.model_file import read_card
from metaseg_cli.core.models import build_model
from metaseg_cli.core.models.blocks import ConvBlock, ConvConfig, conv, nn, total_stride
from metaseg_cli.core.models.network import Network, Prunable, Stride
from metaseg_cli.core.progress import Silent
from tests.common import tiny_training


class OneBlock(Network):
    """A block of convolutions at full resolution, and a head."""

    def __init__(
        self,
        config: ConvConfig,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        strides: Sequence[Stride],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.stride = total_stride(strides)
        self.block = ConvBlock(config, in_channels, widths[0])
        self.heads = nn.ModuleList([conv(config, widths[0], out_channels, kernel=1)])
        self.head_weights = (1.0,)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits: Tensor = self.heads[0](self.block(x))
        return [logits] if self.training and self.deep_supervision else logits


class NotANetwork(nn.Module):
    pass


def row(implementation: type) -> choices.NetworkChoice:
    return choices.NetworkChoice(
        implementation=f"{__name__}:{implementation.__name__}", aliases=("toy",), training_maps=2, inference_maps=2
    )


@pytest.mark.slow
def test_a_network_of_one_row_trains_and_predicts(
    prepared: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choices.NETWORKS, "one-block", row(OneBlock))
    result = train(tiny_training(prepared, tmp_path / "runs", model="toy", epochs=1), Silent())
    assert read_card(result.model).name == "one-block"
    assert result.run.name.startswith("one-block-")
    scan = next(p for p in (raw / "test").rglob("*.png") if "mask" not in p.name)
    config = PredictConfig(inputs=(str(scan),), model=str(result.model), out=tmp_path / "predictions", max_memory="8GB")
    found = predict(config, Silent())
    assert not found.problems


def test_a_class_that_is_not_a_network_is_refused_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choices.NETWORKS, "nothing", row(NotANetwork))
    with pytest.raises(TypeError, match="does not implement"):
        build_model("nothing", in_channels=1, out_channels=1)


@pytest.mark.parametrize("name", choices.NETWORKS)
def test_the_row_of_a_network_says_whether_it_can_be_pruned(name: str) -> None:
    model = build_model(name, in_channels=1, out_channels=1, widths=(4, 8, 8))
    assert isinstance(model, Prunable) == choices.NETWORKS[name].prunable


@pytest.mark.parametrize(
    ("setting", "table"),
    [
        ("loss", choices.LOSSES),
        ("norm", choices.NORMS),
        ("activation", choices.ACTIVATIONS),
        ("optimizer", choices.OPTIMIZERS),
        ("schedule", choices.SCHEDULES),
        ("precision", choices.PRECISIONS),
        ("memory_format", choices.MEMORY_FORMATS),
    ],
)
def test_options_offer_what_the_table_holds(setting: str, table: Sequence[str]) -> None:
    assert settings_of(TrainConfig)[setting][1].choices == tuple(table)
