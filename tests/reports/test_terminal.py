"""What the terminal shows of long results."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, RenderableType

from metaseg_cli.core.results import FollowUp, LesionVisitRow, VisitRow
from metaseg_cli.reports.prediction_summary import follow_up_summary
from metaseg_cli.reports.terminal import facts_table, new_table, rest_lines


def shown(*parts: RenderableType, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def visit(name: str) -> VisitRow:
    return VisitRow(
        visit=name,
        lesions=50,
        volume_ml=1.0,
        sum_of_diameters_mm=10.0,
        from_baseline_percent=None,
        from_nadir_percent=None,
        category="SD",
        reason="",
        new="",
        uncertain="",
    )


def lesion(number: int) -> LesionVisitRow:
    return LesionVisitRow(
        lesion=number,
        visit="first",
        state="there",
        target=False,
        longest_axial_mm=5.0,
        perpendicular_mm=4.0,
        volume_mm3=60.0,
        from_first_percent=None,
        from_nadir_percent=None,
        x_mm=0.0,
        y_mm=0.0,
        z_mm=0.0,
    )


def test_a_long_follow_up_says_what_it_leaves_to_the_file() -> None:
    lesions = tuple(lesion(number) for number in range(1, 139))
    text = shown(*follow_up_summary(FollowUp(out=Path("out"), visits=(visit("first"),), lesions=lesions, notes=())))
    assert "… and 98 more: follow_up.csv lists all" in text
    assert "\n40 " in text
    assert "\n41 " not in text
    assert not rest_lines(40, 40)


def test_names_are_folded_and_not_cut() -> None:
    name = "sub-0001_ses-baseline_acq-highresolution_run-01_part-mag_T1w_extra"
    table = new_table("", "case", ">Dice")
    table.add_row(name, "0.5")
    for part in (table, facts_table("", [(name, "a value")])):
        text = "".join(shown(part, width=50).split())
        assert "…" not in text
        for letters in ("sub-0001", "T1w_extra"):
            assert letters in text
