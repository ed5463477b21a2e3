"""Every metric once: its title, its direction, what empty masks mean for it, and where it is shown.

A name in ``metrics.json`` is that of a row here, or begins with it: ``hd95`` stands for ``hd95_mm`` and ``hd95_px``,
``nsd`` for one name per tolerance. A new metric is one row, and its value in ``scoring.compare``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from metaseg_cli.core.choices import Protocol


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    ``empty`` says what empty masks mean for it, ``empty_split`` the same under a protocol that scores large and small
    lesions apart. ``printed``: in the means of the terminal, which leave out counts and what follows from others.
    """

    name: str
    title: str = ""  # in charts
    lower_is_better: bool = False
    family: str = ""  # whose policy it shares
    empty: str = ""
    empty_split: str = ""
    printed: bool = True


_ONE_EMPTY = "both empty: 1; one empty: 0"
_SIDE_EMPTY = "both empty: 1; prediction empty: 0; reference empty: 0"
_INFINITE = "both empty: 0; one empty: infinite, in means the penalty"

METRICS = (
    Metric(name="dice", title="Dice", empty=_ONE_EMPTY),
    Metric(name="iou", empty=_ONE_EMPTY, printed=False),
    Metric(name="precision", empty=_SIDE_EMPTY),
    Metric(name="recall", empty=_SIDE_EMPTY),
    Metric(name="specificity", empty="reference everywhere: 1", printed=False),
    Metric(name="hd", lower_is_better=True, empty=_INFINITE),
    Metric(name="hd95", title="HD95", lower_is_better=True, empty=_INFINITE),
    Metric(name="assd", title="ASSD", lower_is_better=True, empty=_INFINITE),
    Metric(name="nsd", empty=_ONE_EMPTY),
    Metric(name="volume", printed=False),
    Metric(name="lesions_reference", printed=False),
    Metric(name="lesions_predicted", printed=False),
    Metric(name="lesion_tp", printed=False),
    Metric(name="lesion_fp", lower_is_better=True, printed=False),
    Metric(name="lesion_fn", lower_is_better=True, printed=False),
    Metric(
        name="lesion_precision",
        empty="no lesion on either side: 1; nothing predicted but lesions in the reference: 0",
    ),
    Metric(
        name="lesion_recall",
        empty="no lesion on either side: 1; no lesion in the reference but some predicted: 0",
    ),
    Metric(name="lesion_f1", title="lesion F1", empty="no lesion on either side: 1; on one side only: 0"),
    Metric(
        name="lesion_wise",
        empty="missed and false lesions: dice and nsd 0, hd95 the penalty; no lesion on either side: 1, 1 and 0",
        empty_split="large lesions of the reference and every false one; no large lesion: not defined",
    ),
    Metric(name="lesion_wise_dice", title="lesion-wise Dice", family="lesion_wise"),
    Metric(name="lesion_wise_hd95", title="lesion-wise HD95", lower_is_better=True, family="lesion_wise"),
    Metric(name="lesion_wise_nsd", family="lesion_wise"),
    Metric(
        name="pq",
        empty="pairs of lesions with IoU above one half; no lesion on either side: pq, sq, rq 1; no pair: 0",
        empty_split="no lesion on either side: not defined; no pair: sq and pq 0, sq_hd95 infinite",
    ),
    Metric(name="rq", family="pq", empty_split="no lesion on either side: not defined", printed=False),
    Metric(name="sq", family="pq", printed=False),
    Metric(name="sq_hd95", lower_is_better=True),
    Metric(name="sq_nsd"),
    Metric(
        name="lesion_f1_small",
        empty_split="no lesion below the split volume in the reference: not defined",
    ),
    Metric(name="lesion_f1_large", empty_split="no lesion from the split volume on in the reference: 0"),
)
_BY_NAME = {metric.name: metric for metric in METRICS}
# What follows the name of a row in a name of ``metrics.json``: a unit, a tolerance with its unit, a side.
_QUALIFIER = re.compile(r"(\d+(\.\d+)?)?(mm|px|ml|voxels)|reference|prediction")

# What a comparison of systems tests, in its order; surfaces within 1 mm (or pixel).
COMPARED = (
    *("dice", "lesion_f1", "lesion_recall", "lesion_precision", "lesion_wise_dice"),
    *("nsd_1{unit}", "hd95_{unit}", "lesion_wise_hd95_{unit}"),
)
# What the charts of an evaluation show of each case.
CHARTED_SCORES = ("dice", "lesion_f1", "lesion_wise_dice")
CHARTED_DISTANCES = ("hd95", "assd", "lesion_wise_hd95")


def metric_of(name: str) -> Metric:
    """Return the metric that a name in ``metrics.json`` means. Raises KeyError for names that no metric has."""
    stem = name
    while stem not in _BY_NAME:
        stem, _, rest = stem.rpartition("_")
        if not stem or not _QUALIFIER.fullmatch(rest):
            raise KeyError(name)
    return _BY_NAME[stem]


def meaning_of_empty(name: str, policy: dict[str, str]) -> str:
    """Return what *policy* says of a name in ``metrics.json``."""
    metric = metric_of(name)
    return policy.get(metric.name, policy.get(metric.family, ""))


def policy(protocol: Protocol) -> dict[str, str]:
    """Return what empty masks mean for each metric under *protocol*, as ``metrics.json`` has it."""
    split = protocol.split_mm3 is not None
    meanings = {metric.name: (split and metric.empty_split) or metric.empty for metric in METRICS}
    distance = "the diagonal of the image" if protocol.penalty_mm is None else f"{protocol.penalty_mm:g}"
    infinite = f"null in a case, with the reason; the penalty in means is {distance}"
    return {**{name: text for name, text in meanings.items() if text}, "infinite distances": infinite}
