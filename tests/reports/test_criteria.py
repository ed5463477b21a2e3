"""The rules of a protocol in words: each that numbers depend on is named."""

from __future__ import annotations

from metaseg_cli.core.choices import PROTOCOLS, find_protocol
from metaseg_cli.reports.criteria import criteria, criteria_line


def test_every_rule_that_was_changed_is_named() -> None:
    changed = find_protocol(
        "default", connectivity=6, dilation=2, smallest_lesion_mm3=5.5, matching="overlap", penalty_mm=100.0
    )
    rules = dict(criteria(changed))
    assert "6 neighbours" in rules["a lesion"]
    assert "2 steps of dilation" in rules["a lesion"]
    assert "up to 5.5 mm³" in rules["a lesion"]
    assert "any predicted voxel overlaps it, grown by 2 steps" in rules["found when"]
    assert "100 mm" in rules["distance to an empty mask"]


def test_protocols_do_not_read_alike() -> None:
    assert len({criteria_line(protocol) for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    of_2026 = dict(criteria(PROTOCOLS["brats-mets-2026"]))
    assert "one to one" in of_2026["found when"]
    assert "27 mm³" in of_2026["large and small lesions"]
    assert "grown" not in dict(criteria(find_protocol("default", dilation=1, matching="one-to-one")))["found when"]
