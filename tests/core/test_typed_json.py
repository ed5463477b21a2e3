"""Documents of our own: written from dataclasses and read back as they were."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaseg_cli.core.results import LesionRow, ScanResult
from metaseg_cli.core.typed_json import OMIT_NONE, as_json, build, json_text, stored_as


@dataclass(frozen=True, kw_only=True)
class Example:
    """Every kind of field."""

    path: Path
    new_name: int = field(metadata=stored_as("old_name"))
    values: tuple[float, ...] = ()
    by_name: dict[str, float] = field(default_factory=dict)
    absent: float | None = field(default=None, metadata=OMIT_NONE)
    empty: str | None = None


def test_a_field_may_have_another_key_and_may_be_left_out() -> None:
    assert as_json(Example(path=Path("a/b"), new_name=3)) == {
        "path": "a/b",
        "old_name": 3,
        "values": [],
        "by_name": {},
        "empty": None,
    }


def test_what_is_not_a_number_becomes_null_and_numpy_scalars_become_numbers() -> None:
    assert as_json([float("nan"), float("inf"), np.float32(0.5), np.int64(3), np.bool_(True)]) == [
        None,
        None,
        0.5,
        3,
        True,
    ]


@given(
    st.builds(
        Example,
        path=st.text("abc/ü ", min_size=1).map(Path),
        new_name=st.integers(),
        values=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        by_name=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        absent=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        empty=st.none() | st.text(),
    )
)
def test_a_document_is_read_as_it_was_written(example: Example) -> None:
    assert build(Example, json.loads(json_text(example))) == example


def test_a_scan_is_read_as_it_was_written() -> None:
    lesion = LesionRow(
        scan=Path("scan.png"),
        region="metastasis",
        lesion=1,
        voxels=12,
        volume_mm3=None,
        diameter_px=3.9,
        longest_axial_px=5.0,
        axial_slices=1,
        measurable=None,
        z=0.0,
        y=3.5,
        x=4.0,
        confidence=0.7,
    )
    scan = ScanResult(
        scan=Path("scan.png"),
        name="scan",
        key="k",
        mask=Path("out/scan_mask.png"),
        segmentation=None,
        overlay=Path("out/scan_overlay.png"),
        overview=None,
        probability=(),
        uncertainty=(Path("out/scan_uncertainty.png"),),
        disagreement=(),
        sequences={"t1c": "scan.png"},
        spacing_mm=None,
        backend="torch",
        notes=("a note",),
        sum_of_diameters_mm={},
        lesions=(lesion,),
    )
    document = json.loads(json_text(scan))
    assert build(ScanResult, document) == scan
    assert "diameter_mm" not in document["lesions"][0]
    assert scan.files == (Path("out/scan_mask.png"), Path("out/scan_overlay.png"), Path("out/scan_uncertainty.png"))
