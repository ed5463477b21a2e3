"""What an image looks like, in a few dozen numbers that do not depend on its scale: to tell one sequence from another.

They are of the image as the network sees it, normalised inside the head. Brightness is taken relative to the middle of
the head, half of which is brain in any scan: the scalp, whose brightness varies most, does not set the scale. Free of
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.intensity import head_of_normalised

SLICES = 8  # of a case; more cost time and say little more
_FIRST, _LAST = 0.15, 0.85  # of the height, between which the slices of a volume lie: not the vertex, not the neck
_LONG_SIDE = 128  # pixels to which slices are averaged: contrast, not the size of pixels, is described
_MIDDLE = 0.65  # radius of the ellipse of mostly brain, in half-axes of the head
_RINGS = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8)  # radii
_SCALES = (3, 5, 9, 17)  # widths of the windows whose differences are details: sulci and vessels, gyri, lobes
_EXTREME = 8  # per cent of the details that count as darkest and brightest
_LEAST_PIXELS = 32
_MOSTLY = 0.5  # share of head in a block that counts as head
_LEAST_SPREAD = 0.02  # of the brain's brightness, where the deviation of the head is 1
_MOST = 4.0  # spreads beyond which a brightness is only "very bright"


@dataclass(frozen=True)
class _Places:
    """Parts of a slice ``(Y, X)``: the head, its middle, which is mostly brain, and rings from the centre outwards."""

    head: NDArray[np.bool_]
    middle: NDArray[np.bool_]
    rings: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True)
class _Channel:
    """One sequence of a slice: its averaged *values* ``(Y, X)``, and *level*, them relative to the brain's.

    *smooth* is the level at each scale; *steps* is the mean difference of neighbouring pixels before averaging.
    """

    values: NDArray[np.float32]
    level: NDArray[np.float32]
    smooth: tuple[NDArray[np.float32], ...]
    median: float
    spread: float
    asymmetry: float
    steps: float

    @classmethod
    def of(cls, fine: NDArray[np.float32], values: NDArray[np.float32], middle: NDArray[np.bool_]) -> _Channel:
        low, median, high = (float(p) for p in np.percentile(values[middle], (25, 50, 75)))
        spread = max(high - low, _LEAST_SPREAD)
        level = np.clip((values - median) / spread, -_MOST, _MOST)
        steps = sum(float(np.abs(np.diff(fine, axis=axis)).mean()) for axis in (0, 1) if fine.shape[axis] > 1)
        return cls(
            values=values,
            level=level,
            smooth=tuple(ndimage.uniform_filter(level, size) for size in _SCALES),
            median=median,
            spread=spread,
            asymmetry=(high + low - 2 * median) / spread,
            steps=steps,
        )


OF_SEQUENCE = (
    *(f"brain_p{p}" for p in (1, 5, 95, 99)),
    *("brain_asymmetry", "brain_spread", "brain_median"),
    *(f"head_p{p}" for p in (2, 50, 98)),
    *("head_share", "rim", "centre", "sharpness"),
    *(f"ring_{i}" for i in range(len(_RINGS) - 1)),
    *(f"{what}_{s}" for s in _SCALES[:-1] for what in ("detail", "skew", "slope", "around_dark", "around_bright")),
    *(f"grain_{i}" for i in range(5)),
)
OF_PAIR = ("correlation", "detail_correlation", "difference_p2", "difference_p50", "difference_p98", "detail_skew")


def columns(sequences: Sequence[str]) -> dict[str, slice]:
    """Return where the descriptors of each sequence, and of each pair of them (``t1c and t2f``), stand in a row."""
    found: dict[str, slice] = {}
    stop = 0
    named = [(name, len(OF_SEQUENCE)) for name in sequences]
    for name, size in [*named, *((f"{a} and {b}", len(OF_PAIR)) for a, b in combinations(sequences, 2))]:
        found[name] = slice(stop, stop + size)
        stop += size
    return found


def describe(
    image: NDArray[np.float32], present: Sequence[str], sequences: Sequence[str], *, each_slice: bool
) -> NDArray[np.float32]:
    """Return descriptors of a preprocessed *image* ``(C, Z, Y, X)``, whose channels are *present* of all *sequences*.

    ``(S, K)``, as ``columns`` of *sequences* has them, NaN for what is not present. With *each_slice*, as pictures are
    predicted, a row for each of at most six slices; else their mean, one row.
    """
    low, high = (0.0, 1.0) if each_slice else (_FIRST, _LAST)
    last = image.shape[1] - 1
    chosen = np.unique(np.linspace(low * last, high * last, SLICES).round().astype(int))
    where = columns(sequences)
    rows = np.full((len(chosen), max(part.stop for part in where.values())), np.nan, np.float32)
    for row, z in zip(rows, chosen, strict=True):
        for name, part in zip(columns(present), _describe_slice(image[:, z]), strict=True):
            row[where[name]] = part
    return rows if each_slice else rows.mean(axis=0, keepdims=True)


def _describe_slice(image: NDArray[np.float32]) -> list[list[float]]:
    """Describe each channel of ``(C, Y, X)``, then each pair of them."""
    head = head_of_normalised(image[:, None])[0]
    if np.count_nonzero(head) < _LEAST_PIXELS:
        head = np.ones_like(head)
    box = ndimage.find_objects(head.astype(np.uint8))[0]
    step = max(1, -(-max(s.stop - s.start for s in box) // _LONG_SIDE))
    small = _averaged(head[box].astype(np.float32), step) > _MOSTLY
    if np.count_nonzero(small) < _LEAST_PIXELS:
        small = np.ones_like(small)
    y, x = (np.linspace(-1, 1, n).astype(np.float32) for n in small.shape)
    radius = np.hypot(y[:, None], x[None, :])
    middle = small & (radius < _MIDDLE)
    if np.count_nonzero(middle) < _LEAST_PIXELS:
        middle = small
    where = _Places(small, middle, tuple(small & (radius >= a) & (radius < b) for a, b in pairwise(_RINGS)))
    channels = [_Channel.of(channel[box], _averaged(channel[box], step), middle) for channel in image]
    found = [_describe_channel(channel, where) for channel in channels]
    return found + [_describe_pair(a, b, middle) for a, b in combinations(channels, 2)]


def _averaged(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Return means of blocks of *step* × *step* pixels of ``(Y, X)``; what is left over at the end is dropped."""
    y, x = (max(1, n // step) for n in values.shape)
    if step == 1 or min(values.shape) < step:
        return values
    means: NDArray[np.float32] = values[: y * step, : x * step].reshape(y, step, x, step).mean(axis=(1, 3))
    return means


def _describe_channel(channel: _Channel, where: _Places) -> list[float]:
    brain = channel.values[where.middle]
    p1, p5, p95, p99 = (float(p) for p in np.percentile(brain, (1, 5, 95, 99)))
    median, spread, level = channel.median, channel.spread, channel.level
    tails = [float(np.sign(p - median) * np.log1p(abs(p - median) / spread)) for p in (p1, p5, p95, p99)]
    rim, centre = where.head & ~where.middle, where.rings[0] | where.rings[1]
    return [
        *tails,
        channel.asymmetry,
        float(np.log(spread)),
        median,
        *(float(p) for p in np.percentile(channel.values[where.head], (2, 50, 98))),
        float(where.head.mean()),
        _mean(channel.values[rim], float(brain.mean())) - float(brain.mean()),
        _mean(level[centre], 0.0) - float(level[where.middle].mean()),
        float(np.log(channel.steps / spread + 0.01)),
        *(float(np.median(level[ring])) if ring.any() else 0.0 for ring in where.rings),
        *_details(channel, where.middle),
    ]


def _details(channel: _Channel, middle: NDArray[np.bool_]) -> list[float]:
    """Describe what is brighter or darker than its surroundings at each scale, and how the surroundings are there.

    Next to dark sulci, grey matter is bright in FLAIR and dark in T1; contrast agent makes thin bright vessels.
    """
    found: list[float] = []
    for fine, coarse in pairwise(channel.smooth):
        around = coarse[middle]
        detail = fine[middle] - around
        low, high = np.percentile(detail, (_EXTREME, 100 - _EXTREME))
        size, deviation = np.abs(detail), float(detail.std())
        found += [
            float(np.log(deviation + 0.01)),
            float((high + low) / (high - low + 0.01)),
            float(np.mean((size - size.mean()) * (around - around.mean()))) / (deviation * float(around.std()) + 0.01),
            _mean(around[detail <= low], 0.0),
            _mean(around[detail >= high], 0.0),
        ]
    local = channel.smooth[0][middle]
    grain = np.abs(channel.level[middle] - local)
    band = np.digitize(local, np.percentile(local, (20, 40, 60, 80)))
    return found + [float(np.log(_mean(grain[band == i], 0.0) + 0.01)) for i in range(5)]


def _describe_pair(a: _Channel, b: _Channel, middle: NDArray[np.bool_]) -> list[float]:
    """Describe how two sequences of one slice differ, voxel by voxel."""
    difference = (a.level - b.level)[middle]
    details = [(each.smooth[0] - each.smooth[-1])[middle] for each in (a, b)]
    low, high = np.percentile(details[0] - details[1], (2, 98))
    return [
        _correlation(a.level[middle], b.level[middle]),
        _correlation(*details),
        *(float(p) for p in np.percentile(difference, (2, 50, 98))),
        float((high + low) / (high - low + 0.01)),
    ]


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    both = float(a.std()) * float(b.std())
    return float(np.mean((a - a.mean()) * (b - b.mean()))) / (both + 1e-4)


def _mean(values: NDArray[np.float32], otherwise: float) -> float:
    return float(values.mean()) if values.size else otherwise
