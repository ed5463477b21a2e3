"""The files of a comparison: comparison.json, comparison.csv, comparison.html."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import metaseg_cli
from metaseg_cli.core.atomic import atomic_write_text, make_folder, translate_write_errors
from metaseg_cli.core.csv_text import csv_text
from metaseg_cli.core.metrics.differences import Difference
from metaseg_cli.core.metrics.evaluation import Evaluation
from metaseg_cli.reports import charts, pages

SCHEMA = 1
DOCUMENT = "comparison.json"

Ranks = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def write(
    out: Path,
    systems: Mapping[str, Evaluation],
    differences: Mapping[str, Sequence[Difference]],
    ranks: Ranks,
    *,
    patients: int,
    notes: Sequence[str],
    sources: Mapping[str, str],
) -> None:
    """Write everything into *out*, where each system's own evaluation already lies in a folder of its name.

    ``comparison.json`` comes last, and an older one goes first: where it stands, all is of one call.
    """
    make_folder(out)
    with translate_write_errors(out / DOCUMENT):
        (out / DOCUMENT).unlink(missing_ok=True)
    rows = [{"region": region, **_row(each)} for region, found in differences.items() for each in found]
    document = {
        "schema": SCHEMA,
        "program": f"metaseg {metaseg_cli.__version__}",
        "protocol": next(iter(systems.values())).protocol.record(),
        "systems": [{"name": name, "what": sources[name], "summary": e.summary} for name, e in systems.items()],
        "patients": patients,
        "differences": rows,
        "ranks": ranks,
        "notes": list(notes),
    }
    atomic_write_text(out / "comparison.csv", csv_text(rows, list(rows[0]) if rows else ["region"]))
    atomic_write_text(
        out / "comparison.html",
        pages.template("comparison.html.j2").render(
            names=list(systems),
            sources=sources,
            patients=patients,
            notes=notes,
            regions=[_region(region, systems, differences[region], ranks[region]) for region in differences],
        ),
    )
    atomic_write_text(out / DOCUMENT, json.dumps(finite(document), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: both become null."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(found: Difference) -> dict[str, Any]:
    row = asdict(found)
    low, high = row.pop("ci95")
    return {**row, "ci95_low": low, "ci95_high": high}


def _region(
    region: str,
    systems: Mapping[str, Evaluation],
    differences: Sequence[Difference],
    ranks: Mapping[str, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
    return {
        "name": region,
        "means": [
            (metric, [pages.number(e.summary[region][metric]["mean"]) for e in systems.values()]) for metric in ranks
        ],
        "differences": [
            (
                *(d.metric, d.first, d.second),
                *(f"{d.mean:+.3f}", pages.interval(d.ci95), pages.p_value(d.p_holm)),
                *(d.wins, d.ties, d.losses),
            )
            for d in differences
        ],
        "chart": base64.b64encode(charts.rank_stability(ranks)).decode(),
    }
