"""Damaged files of our own, model, prepared folder, settings, are refused with the remedy, quickly."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import merge_config, read_yaml
from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.inference.finished_scans import FinishedScans
from metaseg_cli.core.model_file import load_model_file, read_card, save_model
from metaseg_cli.core.typed_json import build, read_json
from metaseg_cli.errors import ConfigError, InputError, MetasegError, ModelFileError
from tests.common import small_card


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "m.safetensors", small_card().build(), small_card())
    return tmp_path / "m.safetensors"


def changed(path: Path, **values: Any) -> Path:
    """The model file with another card, as somebody else's program would write it: without checksums."""
    with safe_open(str(path), framework="pt") as file:
        card = json.loads(file.metadata()["metaseg"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in values.items():
        card[name] = value
    save_file(weights, str(path), metadata={"metaseg": json.dumps(card)})
    return path


def test_a_model_file_without_checksums_is_read(model: Path) -> None:
    load_model_file(changed(model))


def test_a_flipped_bit_in_weights_or_card_is_noticed(model: Path) -> None:
    whole = model.read_bytes()
    for at in (len(whole) - 5, len(whole) // 2, whole.index(b'\\"patch\\"') + 14):
        model.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ModelFileError, match="damaged"):
            load_model_file(model)


@pytest.mark.parametrize(
    "values",
    [
        {"members": 10**9},
        {"members": "two"},
        {"members": 0},
        {"widths": [10**7, 8, 8]},
        {"widths": []},
        {"widths": 4},
        {"patch": [1, 2]},
        {"patch": [0, 32, 32]},
        {"strides": [[2, 2]]},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"regions": {"ET": [300]}},
        {"regions": ["ET"]},
        {"sequences": []},
        {"postprocessing": {"ET": {"threshold": 7}}},
        {"preprocessing": [1]},
        {"dims": 7},
        {"name": "../x"},
        {"in_channels": -3},
        {"norm": 5},
        {"format": 99},
    ],
    ids=str,
)
def test_a_card_that_no_training_writes_is_refused_at_once(model: Path, values: dict[str, Any]) -> None:
    began = time.monotonic()
    with pytest.raises(MetasegError) as caught:
        load_model_file(changed(model, **values))
    assert caught.value.remedy
    assert time.monotonic() - began < 2


def test_deep_nesting_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested"):
        read_json(tmp_path / "deep.json", remedy="x")
    weights = {"w": torch.zeros(1)}
    save_file(weights, str(model), metadata={"metaseg": "[" * 100_000})
    with pytest.raises(ModelFileError):
        read_card(model)


@pytest.mark.parametrize(
    "text",
    [
        "epochs: 2001-99-99",
        "epochs: !!int x",
        "epochs: !!python/object/apply:os.system ['true']",
        "[" * 5000,
        "{a: " * 3000,
        "a: &x [1]\nb: *x",
        'a: &a ["lol","lol"]\n' + "\n".join(f"b{i}: &b{i} [*a,*a,*a,*a,*a,*a,*a,*a,*a]" for i in range(9)),
        "epochs: [[[[[[[[[[1]]]]]]]]]]",
        "epochs: 3\nepochs: {x: 1}",
        "\0",
        "- 1\n- 2",
        "epochs: .nan",
        "epochs: 1e400",
        "widths: {a: b}",
        "? [a]\n: 1",
        "epochs: " + "9" * 5000,
    ],
)
def test_settings_that_are_none_are_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(text.encode())
    began = time.monotonic()
    with pytest.raises(ConfigError):
        merge_config(TrainConfig, read_yaml(tmp_path / "c.yaml"), {})
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "values",
    [
        {"cases": 3},
        {"cases": [{"case": "x"}]},
        {"folds": "many"},
        {"folds": 10**9},
        {"regions": [1]},
        {"preprocessing": {"normalisation": "other"}},
        {"sequences": []},
        {"schema": [3]},
        {"kind": 7},
    ],
    ids=str,
)
def test_a_listing_that_prepare_does_not_write_is_refused(
    values: dict[str, Any], prepared: Path, tmp_path: Path
) -> None:
    listing = json.loads((prepared / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**listing, **values}))
    with pytest.raises(InputError) as caught:
        open_prepared(tmp_path)
    assert "prepare" in caught.value.remedy


def test_a_shard_named_outside_the_folder_is_refused(prepared: Path, tmp_path: Path) -> None:
    listing = json.loads((prepared / "dataset.json").read_text())
    listing["cases"][0]["shard"] = "../../secret.h5"
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(InputError):
        open_prepared(tmp_path)


@dataclass(frozen=True, kw_only=True)
class _Small:
    a: int
    b: tuple[float, ...] = ()
    c: dict[int, str] | None = None


def test_a_document_is_built_with_its_types_or_says_where_it_is_wrong() -> None:
    assert build(_Small, {"a": 1, "b": [1, 2.5], "c": {"3": "x"}, "unknown": 1}) == _Small(
        a=1, b=(1.0, 2.5), c={3: "x"}
    )
    for values, says in (
        ({"a": True}, "a is not a whole number"),
        ({"a": 1.0}, "a is not a whole number"),
        ({}, "has no a"),
        ({"a": 1, "b": [1, "x"]}, r"b\[1\] is not a number"),
        ({"a": 1, "b": [float("inf")]}, r"b\[0\]"),
        ({"a": 1, "c": {"x": "y"}}, "whole number"),
        ([], "not a table"),
    ):
        with pytest.raises(ValueError, match=says):
            build(_Small, values)


@pytest.mark.parametrize("mask", ["x" * 5000, "a\0b", "", 7, None])
def test_a_damaged_table_of_predictions_costs_nothing_but_what_it_knew(mask: object, tmp_path: Path) -> None:
    entry = {"name": "a", "key": "k", "mask": mask}
    (tmp_path / "predictions.json").write_text(json.dumps({"scans": [entry], "earlier": "none"}))
    assert FinishedScans(tmp_path).others(set()) == ()
