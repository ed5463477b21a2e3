"""Charts of an evaluation, as PNG bytes that a page can hold."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.core.metrics.froc import FROC_AT
from metaseg_cli.core.metrics.lesions import SizeClass
from metaseg_cli.core.metrics.table import CHARTED_DISTANCES, CHARTED_SCORES, metric_of
from metaseg_cli.core.results import FollowUp, VisitRow
from metaseg_cli.core.results.scores import FrocCurve, RankFrequencies, ReliabilityCurves
from metaseg_cli.reports.lesion_colours import lesion_colour_code

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS, _LINE, _SOFT = "#d9480f", "#4c78a8", "#b0b6bd"


def _figure(columns: int = 1, width: float = 4.6, count: int = 0, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    """Return a figure and its *count* panels (by default one per column)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    lines = -(-max(count, columns) // columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=130, layout="constrained")
    panels = [figure.add_subplot(lines, columns, i + 1) for i in range(count or columns)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels


def _png(figure: Figure) -> bytes:
    to = io.BytesIO()
    figure.savefig(to, format="png")
    return to.getvalue()


def distributions(evaluation: Evaluation, region: str) -> bytes:
    """Draw every case as a dot: overlap, detection, and distance (of a missing mask: its penalty)."""
    unit = evaluation.cases[0].comparisons[region].unit
    figure, (left, right) = _figure(2)
    rng = np.random.default_rng(0)

    def dots(axes: Axes, at: int, metric: str) -> None:
        having = [case for case in evaluation.cases if metric in case.comparisons[region].scores]
        values = np.array([case.for_mean(region, metric) for case in having])
        values = values[np.isfinite(values)]
        if not len(values):
            return
        axes.boxplot(
            values,
            positions=[at],
            widths=0.5,
            showfliers=False,
            boxprops={"color": _LINE},
            whiskerprops={"color": _SOFT},
            capprops={"color": _SOFT},
            medianprops={"color": _LINE, "linewidth": 2},
        )
        axes.scatter(at + rng.uniform(-0.16, 0.16, len(values)), values, s=12, alpha=0.6, color=_DOTS, linewidths=0)

    for i, metric in enumerate(CHARTED_SCORES):
        dots(left, i, metric)
    left.set(ylim=(-0.03, 1.03), title="Per case")
    left.set_xticks(range(len(CHARTED_SCORES)), [metric_of(metric).title for metric in CHARTED_SCORES])
    for i, metric in enumerate(CHARTED_DISTANCES):
        dots(right, i, f"{metric}_{unit}")
    right.set(title=f"Distances ({unit})")
    right.set_ylim(bottom=0)
    right.set_xticks(range(len(CHARTED_DISTANCES)), [metric_of(metric).title for metric in CHARTED_DISTANCES])
    return _png(figure)


def by_size(rows: Mapping[str, SizeClass]) -> bytes:
    """Draw the fraction of reference lesions that were found, with Wilson's 95 % interval and the counts."""
    figure, (axes,) = _figure(width=5.2)
    names = [name for name, row in rows.items() if row.lesions]
    for i, name in enumerate(names):
        lesions, found = rows[name].lesions, rows[name].found
        share = found / lesions
        low, high = _wilson(found, lesions)
        axes.bar(i, share, color=_LINE, alpha=0.75, width=0.6)
        axes.errorbar(i, share, [[share - low], [high - share]], color="#333", capsize=4, linewidth=1)
    axes.set(ylim=(0, 1.03), ylabel="lesions found", title="Sensitivity by size of the lesion")
    counted = [f"{name}\n{rows[name].found} of {rows[name].lesions}" for name in names]
    axes.set_xticks(range(len(names)), counted, fontsize=8)
    axes.grid(axis="x", alpha=0)
    return _png(figure)


def _wilson(found: int, lesions: int) -> tuple[float, float]:
    z = 1.96
    share, spread = found / lesions, z * z / lesions
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / lesions + spread / lesions / 4) / (1 + spread)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def free_response(curve: FrocCurve, average_precision: float) -> bytes:
    """Draw lesion recall against false lesions per case."""
    figure, (axes,) = _figure()
    axes.step([*curve.false_per_case, FROC_AT[-1]], [*curve.recall, curve.recall[-1]], where="post", color=_LINE)
    axes.set_xscale("symlog", linthresh=0.125, linscale=0.4)
    axes.set_xticks([0, *FROC_AT], ["0", "⅛", "¼", "½", "1", "2", "4", "8"])
    axes.set(xlim=(0, FROC_AT[-1]), ylim=(0, 1.03), xlabel="false lesions per case", ylabel="lesions found")
    axes.set_title(f"FROC: mean recall {curve.score:.3f}, average precision {average_precision:.3f}")
    return _png(figure)


def reliability(curves: ReliabilityCurves, ece: float) -> bytes:
    """Draw the fraction of voxels that are lesion against the predicted probability."""
    figure, (axes,) = _figure()
    axes.plot([0, 1], [0, 1], color=_SOFT, linestyle=":")
    shown = curves.equal_width
    axes.plot(shown.predicted, shown.observed, marker="o", markersize=4, color=_LINE)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="predicted probability", ylabel="share of voxels that are lesion")
    axes.set_title(f"Reliability: expected calibration error {ece:.4f}")
    return _png(figure)


def rank_stability(ranks: RankFrequencies) -> bytes:
    """Draw how often each system has each rank, one bar per system and metric."""
    systems_shown = max(len(systems) for systems in ranks.values())
    figure, panels = _figure(min(4, len(ranks)), width=2.6, count=len(ranks), height=0.8 + 0.45 * systems_shown)
    first_of_line = panels[:: min(4, len(ranks))]
    for axes, (metric, systems) in zip(panels, ranks.items(), strict=True):
        for row, shares in enumerate(systems.values()):
            left = 0.0
            for rank, share in enumerate(shares):
                shade = 1 - rank / max(1, len(shares))
                axes.barh(row, share, left=left, color=_LINE, alpha=0.2 + 0.8 * shade, height=0.6)
                if share > 0.12:
                    axes.text(left + share / 2, row, f"{rank + 1}.", ha="center", va="center", fontsize=8)
                left += share
        axes.set(xlim=(0, 1), title=metric)
        axes.title.set_fontsize(9)
        names = [textwrap.fill(name, 24) if axes in first_of_line else "" for name in systems]
        axes.set_yticks(range(len(systems)), names, fontsize=8)
        axes.invert_yaxis()
    return _png(figure)


def diameters_over_visits(follow_up: FollowUp) -> bytes:
    """Draw the longest diameter of every lesion over the visits, and the sum of the targets' with its categories.

    Visits with dates lie as far apart as they were. Lines show −30 % of the baseline sum and +20 % of the smallest one
    before each visit.
    """
    visits = follow_up.visits
    figure, (each, together) = _figure(2, width=max(4.6, 1.1 * len(visits)))
    at = _times(visits)
    place = {visit.visit: x for visit, x in zip(visits, at, strict=True)}
    for number in dict.fromkeys(row.lesion for row in follow_up.lesions):
        rows = [row for row in follow_up.lesions if row.lesion == number]
        shown, lengths = [place[row.visit] for row in rows], [row.longest_axial_mm for row in rows]
        each.plot(
            shown,
            lengths,
            marker="o",
            markersize=4,
            color=lesion_colour_code(number),
            linewidth=2.2 if rows[0].target else 1.0,
            linestyle="-" if rows[0].target else "--",
        )
        label = (shown[-1], lengths[-1])
        each.annotate(str(number), label, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    each.set(title="Longest axial diameter (mm); targets solid, others dashed", ylim=(0, None))
    sums = [visit.sum_of_diameters_mm for visit in visits]
    together.plot(at, sums, marker="o", color=_LINE)
    for x, visit in zip(at, visits, strict=True):
        label = (x, visit.sum_of_diameters_mm)
        together.annotate(visit.category, label, xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8)
    if sums[0]:
        together.axhline(0.7 * sums[0], color="#2b8a3e", linestyle=":", linewidth=1.2)
        together.text(0.01, 0.7 * sums[0], "−30 % of baseline", color="#2b8a3e", fontsize=7, ha="left", va="bottom",
                      transform=together.get_yaxis_transform())  # fmt: skip
        limits = [1.2 * min(sums[: max(1, v)]) for v in range(len(sums))]
        together.step(at, limits, where="mid", color=_DOTS, linestyle=":", linewidth=1.2)
        together.text(1, limits[-1], "+20 % of smallest", color=_DOTS, fontsize=7, ha="right", va="bottom",
                      transform=together.get_yaxis_transform())  # fmt: skip
    together.set(title="Sum of the targets' diameters (mm), RANO-BM by imaging only", ylim=(0, 1.3 * max([*sums, 1.0])))
    names = [visit.date or textwrap.fill(visit.visit, 16) for visit in visits]
    crowded = len(visits) > 3 or all(visit.date for visit in visits)  # by their dates, they may lie near one another
    margin = 0.4 * (at[-1] - at[0]) / max(1, len(at) - 1)
    for axes in (each, together):
        axes.title.set_fontsize(9)
        axes.set_xlim(at[0] - margin, at[-1] + margin)
        axes.set_xticks(at, names, rotation=25 if crowded else 0, fontsize=8)
    return _png(figure)


def _times(visits: Sequence[VisitRow]) -> list[float]:
    """Return where visits lie on the axis: in days where all have different dates, else 0, 1, 2 …"""
    dates = [visit.date for visit in visits]
    if all(dates) and len(set(dates)) == len(dates):
        return [float(date.fromisoformat(text).toordinal()) for text in dates]
    return [float(i) for i in range(len(visits))]
