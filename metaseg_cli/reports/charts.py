"""Charts of an evaluation, as PNG bytes that a page can hold."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from metaseg_cli.core.follow_up import FollowUpResult
from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.core.metrics.froc import FROC_AT
from metaseg_cli.core.metrics.lesions import SizeClass
from metaseg_cli.core.metrics.table import CHARTED_DISTANCES, CHARTED_SCORES, metric_of
from metaseg_cli.core.results.scores import FrocCurve, RankFrequencies, ReliabilityCurves

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
        axes.set_yticks(
            range(len(systems)), list(systems) if axes in first_of_line else [""] * len(systems), fontsize=8
        )
        axes.invert_yaxis()
    return _png(figure)


def diameters_over_visits(visits: Sequence[str], result: FollowUpResult) -> bytes:
    """Draw the longest diameter of every lesion over the visits, and the sum of the targets' with its categories."""
    figure, (each, together) = _figure(2, width=max(4.6, 1.1 * len(visits)))
    at = np.arange(len(visits))
    for lesion in result.lesions:
        lengths = [at_visit.longest_mm for at_visit in lesion.at_visits]
        shown = at[lesion.first :]
        colour, width = (_LINE, 1.8) if lesion.target else (_SOFT, 1.2)
        each.plot(shown, lengths[lesion.first :], marker="o", markersize=4, color=colour, linewidth=width)
        if lesion.first:
            each.plot(shown[0], lengths[lesion.first], marker="o", markersize=7, color=_DOTS)
        each.annotate(
            str(lesion.number), (shown[-1], lengths[-1]), xytext=(6, 0), textcoords="offset points", va="center"
        )
    each.set(title="Longest diameter (mm); targets blue, new lesions orange", ylim=(0, None))
    sums = [visit.sum_mm for visit in result.visits]
    together.plot(at, sums, marker="o", color=_LINE)
    for x, visit in zip(at, result.visits, strict=True):
        together.annotate(visit.category, (x, visit.sum_mm), xytext=(0, 8), textcoords="offset points", ha="center")
    together.set(title="Sum of the targets' diameters (mm)", ylim=(0, 1.2 * max([*sums, 1.0])))
    for axes in (each, together):
        axes.title.set_fontsize(9)
        axes.set_xlim(-0.4, len(visits) - 0.6)
        names = [name if len(name) <= 16 else f"…{name[-15:]}" for name in visits]
        axes.set_xticks(at, names, rotation=25 if len(visits) > 3 or max(map(len, names)) > 10 else 0, fontsize=8)
    return _png(figure)
