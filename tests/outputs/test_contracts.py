"""The keys and columns that users rely on, against committed snapshots.

A difference is a change of a public contract. If it is meant: raise ``results.SCHEMA`` where a key goes or changes its
meaning, write the snapshots again with METASEG_WRITE_CONTRACTS=1, and say so in the changelog.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import types
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from metaseg_cli.commands.compare import compare
from metaseg_cli.commands.evaluate import evaluate
from metaseg_cli.commands.follow_up import follow_up
from metaseg_cli.commands.predict import predict
from metaseg_cli.config import EvaluateConfig, FollowUpConfig, PredictConfig
from metaseg_cli.core.choices import PROTOCOLS
from metaseg_cli.core.metrics import score
from metaseg_cli.core.model_file import FORMAT, ModelCard
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.results import (
    COMPARISON_FILE,
    FOLLOW_UP_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SCHEMA,
    CaseRow,
    EvaluatedLesionRow,
    FollowUp,
    LesionRow,
    LesionVisitRow,
    Metrics,
    Predictions,
    SystemComparison,
    VisitRow,
)
from metaseg_cli.core.results.scores import PairedDifference
from metaseg_cli.core.run_folder import MODEL_FILE
from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_volumes
from metaseg_cli.outputs.documents import columns

CONTRACTS = Path(__file__).parent / "contracts"
DOCUMENTS = {
    PREDICTIONS_FILE: Predictions,
    METRICS_FILE: Metrics,
    COMPARISON_FILE: SystemComparison,
    FOLLOW_UP_FILE: FollowUp,
}
TABLES = {
    "predict: lesions.csv": LesionRow,
    "evaluate: cases.csv, before the metrics": CaseRow,
    "evaluate: lesions.csv": EvaluatedLesionRow,
    "evaluate: comparison.csv": PairedDifference,
    "follow-up: follow_up.csv": LesionVisitRow,
    "follow-up: visits.csv": VisitRow,
}
Shape = object  # what JSON can hold: names of types, with keys and items around them


def shape(kind: object) -> Shape:
    """Return the types of a class's JSON: keys with a ? may be absent, numbers with a ? may be null."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType) or origin is typing.Union:
        options = [shape(option) for option in arguments if option is not type(None)]
        first = options[0] if len(options) == 1 else {"one of": options}
        return f"{first}?" if isinstance(first, str) and type(None) in arguments else first
    if origin is dict:
        return {"any key": shape(arguments[1])}
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return [shape(arguments[0])]
    if origin is tuple:
        return [shape(argument) for argument in arguments]
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {_key(field): shape(hints[field.name]) for field in dataclasses.fields(kind)}
    if kind is typing.Any:
        return "anything?"
    return {str: "text", Path: "text", int: "integer", float: "number?", bool: "true or false"}[
        typing.cast("type", kind)
    ]


def _key(field: dataclasses.Field[object]) -> str:
    name = str(field.metadata.get("json_key", field.name))
    return f"{name}?" if field.metadata.get("json_omit_none") else name


def check(value: object, expected: Shape, where: str = "") -> None:
    """Fail where *value*, from a document, does not have the *expected* shape."""
    if isinstance(expected, dict) and "one of" in expected:
        keys = [{key.rstrip("?") for key in option} for option in expected["one of"]]
        assert isinstance(value, dict)
        assert set(value) in keys, where
        expected = expected["one of"][keys.index(set(value))]
    if isinstance(expected, dict):
        if value is None:
            return
        assert isinstance(value, dict), where
        if "any key" in expected:
            expected = dict.fromkeys(value, expected["any key"])
        required = [key for key in expected if not key.endswith("?")]
        allowed = [key.rstrip("?") for key in expected]
        assert set(required) <= set(value) <= set(allowed), where
        assert list(value) == [key for key in allowed if key in value], f"{where}: order of keys"
        for key, item in value.items():
            check(item, expected.get(key, expected.get(f"{key}?")), f"{where}.{key}")
    elif isinstance(expected, list):
        if value is None:
            return
        assert isinstance(value, list), where
        for item, kind in zip(value, expected if len(expected) > 1 else expected * len(value), strict=True):
            check(item, kind, f"{where}[]")
    else:
        kinds = {"text": str, "integer": int, "number": (int, float), "true or false": bool, "anything": object}
        assert isinstance(expected, str)
        if value is not None or not expected.endswith("?"):
            assert isinstance(value, kinds[expected.rstrip("?")]), f"{where}: {value!r}"  # type: ignore[arg-type]


def contract(name: str, current: object) -> None:
    """Compare *current* with the committed snapshot *name*."""
    path = CONTRACTS / name
    if os.environ.get("METASEG_WRITE_CONTRACTS"):
        path.write_text(json.dumps(current, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert current == json.loads(path.read_text(encoding="utf-8")), f"{name}: a public contract changed"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_keys_of_a_document_are_those_of_its_snapshot(name: str) -> None:
    contract(name, {"schema version": SCHEMA, "document": shape(DOCUMENTS[name])})


def test_the_columns_of_tables_are_those_of_their_snapshot() -> None:
    contract("columns.json", {name: list(columns(kind)) for name, kind in TABLES.items()})


def test_the_names_of_metrics_are_those_of_their_snapshot() -> None:
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:5, 2:5] = True
    names = {name: list(score(mask, mask, (2.0, 1.0, 1.0), name)) for name in PROTOCOLS}
    contract("metrics.names.json", {**names, "default, without a spacing": list(score(mask, mask))})


def test_the_keys_of_a_model_card_are_those_of_its_snapshot(trained: Path) -> None:
    contract("model_card.json", {"format version": FORMAT, "document": shape(ModelCard)})
    with safe_open(str(trained / MODEL_FILE), framework="pt") as file:
        card = json.loads(file.metadata()["metaseg"])
    assert card.pop("format") == FORMAT
    check(card, shape(ModelCard), "card")


def written(path: Path) -> object:
    document = json.loads(path.read_text(encoding="utf-8"))
    snapshot = json.loads((CONTRACTS / path.name).read_text(encoding="utf-8"))
    check(document, snapshot["document"], path.name)
    assert document["schema"] == snapshot["schema version"]
    return document


def header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


def test_what_predict_writes_has_the_shape_of_its_snapshot(trained: Path, raw: Path, tmp_path: Path) -> None:
    picture = raw / "train" / "patient001" / "patient001_02.png"
    config = PredictConfig(inputs=(str(picture), "missing.png"), model=str(trained), out=tmp_path, threshold=0.02)
    predict(config, Silent())
    written(tmp_path / PREDICTIONS_FILE)
    assert header(tmp_path / "lesions.csv") == list(columns(LesionRow))


def test_what_evaluate_writes_has_the_shape_of_its_snapshot(trained: Path, prepared: Path, tmp_path: Path) -> None:
    evaluate(EvaluateConfig(models=(str(trained),), data=prepared, split="all", out=tmp_path), Silent())
    written(tmp_path / METRICS_FILE)
    names = json.loads((CONTRACTS / "metrics.names.json").read_text(encoding="utf-8"))
    assert header(tmp_path / "cases.csv") == [*columns(CaseRow), *names["default, without a spacing"]]
    assert header(tmp_path / "lesions.csv") == list(columns(EvaluatedLesionRow))


def test_what_a_comparison_writes_has_the_shape_of_its_snapshot(tmp_path: Path) -> None:
    for folder, size in (("truth", 8), ("near", 7), ("far", 5)):
        (tmp_path / folder).mkdir()
        for case in range(3):
            mask = np.zeros((32, 32), np.uint8)
            mask[case : case + size, 4 : 4 + size] = 255
            Image.fromarray(mask).save(tmp_path / folder / f"case{case}.png")
    systems = (str(tmp_path / "near"), str(tmp_path / "far"))
    compare(EvaluateConfig(models=systems, references=tmp_path / "truth", out=tmp_path / "out"), Silent())
    written(tmp_path / "out" / COMPARISON_FILE)
    written(tmp_path / "out" / "near" / METRICS_FILE)
    assert header(tmp_path / "out" / "comparison.csv") == list(columns(PairedDifference))


def test_what_follow_up_writes_has_the_shape_of_its_snapshot(tmp_path: Path) -> None:
    write_phantom_volumes(tmp_path, 2, PhantomSettings(shape=(12, 48, 48)), seed=1)
    visits = tuple(map(str, sorted((tmp_path / "labelsTr").glob("*.nii.gz"))))
    follow_up(FollowUpConfig(visits=visits, out=tmp_path / "out"), Silent())
    written(tmp_path / "out" / FOLLOW_UP_FILE)
    assert header(tmp_path / "out" / "follow_up.csv") == list(columns(LesionVisitRow))
    assert header(tmp_path / "out" / "visits.csv") == list(columns(VisitRow))
