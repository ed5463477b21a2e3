"""Which region lesions are counted in, and what each region is."""

from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from metaseg_cli.core.regions import CONCEPTS, index_region, region_kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("metastasis", "metastasis"), ("brain mets", "metastasis"), ("GTV", "metastasis"),
        ("ET", "enhancing"), ("Enhancing Tumour", "enhancing"), ("enhancing_tumor 2", "enhancing"),
        ("TC", "core"), ("tumorCore", "core"), ("WT", "whole"), ("whole tumor", "whole"),
        ("NCR", "necrosis"), ("necrotic core", "necrosis"), ("NETC", "non-enhancing"),
        ("non-enhancing tumor core", "non-enhancing"), ("ED", "oedema"), ("peritumoral edema", "oedema"),
        ("SNFH", "oedema"), ("Ödem", "oedema"), ("RC", "cavity"), ("resection cavity", "cavity"), ("R1", "unknown"),
    ],
)  # fmt: skip
def test_kind_of_a_region_is_read_from_its_name(name: str, kind: str) -> None:
    assert region_kind(name) == kind


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ({"metastasis": ()}, "metastasis"),
        ({"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}, "ET"),
        ({"WT": (1, 2, 3), "TC": (1, 3)}, "TC"),
        ({"ED": (2,), "metastasis": (1, 3)}, "metastasis"),
        ({"edema": (2,), "necrosis": (1,), "tumor": (1, 2, 3)}, "tumor"),
        ({"ED": (2,)}, "ED"),
        ({"anything": (), "part": (4, 5)}, "part"),
    ],
)
def test_index_region_is_the_metastasis_or_the_enhancing_tumour(
    regions: dict[str, tuple[int, ...]], expected: str
) -> None:
    assert index_region(regions) == expected


def test_every_concept_is_in_the_code_dictionary() -> None:
    meanings = {kind: getattr(getattr(codes, c.scheme), c.keyword).meaning for kind, c in CONCEPTS.items()}
    assert meanings["enhancing"] == "Enhancing Lesion"
    assert meanings["oedema"] == "Edema"
    assert meanings["necrosis"] == "Necrosis"
    assert meanings["metastasis"] == "Metastasis"
