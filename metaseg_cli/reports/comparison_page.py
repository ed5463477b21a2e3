"""``comparison.html``: the means of all systems, their paired differences, and how stable their ranks are."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.counts import counted
from metaseg_cli.core.results import SystemComparison
from metaseg_cli.core.results.scores import PairedDifference
from metaseg_cli.reports import charts
from metaseg_cli.reports.criteria import criteria
from metaseg_cli.reports.pages import interval, number, p_value, template


@dataclass(frozen=True, kw_only=True)
class ComparedRegion:
    """What the page shows of one region: rows of its tables, and the chart of ranks as base64 of a PNG."""

    name: str
    means: list[tuple[str, list[str]]]
    differences: list[tuple[str | int, ...]]
    chart: str


def write_comparison_page(path: Path, comparison: SystemComparison) -> None:
    """Write the page to *path*."""
    text = template("comparison.html.j2").render(
        names=[system.name for system in comparison.systems],
        sources={system.name: system.what for system in comparison.systems},
        patients=counted(comparison.patients, "patient"),
        criteria=criteria(comparison.protocol),
        notes=comparison.notes,
        regions=[_region(comparison, region) for region in comparison.ranks],
    )
    atomic_write_text(path, text)


def _region(comparison: SystemComparison, region: str) -> ComparedRegion:
    ranks = comparison.ranks[region]
    return ComparedRegion(
        name=region,
        means=[
            (metric, [number(system.summary[region][metric].mean) for system in comparison.systems]) for metric in ranks
        ],
        differences=[_difference(row) for row in comparison.differences if row.region == region],
        chart=base64.b64encode(charts.rank_stability(ranks)).decode(),
    )


def _difference(row: PairedDifference) -> tuple[str | int, ...]:
    ci95 = interval((row.ci95_low, row.ci95_high))
    sides = (row.metric, row.first, row.second)
    return (*sides, f"{row.mean:+.3f}", ci95, p_value(row.p_holm), row.wins, row.ties, row.losses)
