"""Time of all metrics of one case of 240 × 240 × 155 voxels with ten lesions, next to other libraries, on one thread.

    python tests/benchmarks/metrics.py [--rounds 3]

metaseg computes everything it knows (``score``, default protocol, and that of 2023). Peers: MONAI's Dice, Hausdorff,
surface distance and surface Dice, or surface-distance with MONAI's Dice, for the whole image alone; the steps of the
challenge's code of 2023, which takes whole volumes for each lesion, with the libraries that it uses. MONAI,
surface-distance and scikit-image come with the ``test`` extra. Medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import scipy.ndimage as ndi
import torch

from metaseg_cli.core.metrics import score
from metaseg_cli.core.metrics.surfaces import surface_distances
from metaseg_cli.core.metrics.voxels import confusion

np.Inf = np.inf  # surface-distance 0.1 is older than NumPy 2
ndi.filters = ndi.morphology = ndi

Mask = np.ndarray
SHAPE, SPACING = (155, 240, 240), (1.0, 1.0, 1.0)


def case(seed: int = 0, lesions: int = 10) -> tuple[Mask, Mask]:
    """Spheres of 2 to 12 mm radius; the prediction moves them by a voxel or two, misses one and adds two."""
    rng = np.random.default_rng(seed)
    masks = [np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)]

    def ball(mask: Mask, centre: np.ndarray, radius: float) -> None:
        low = np.maximum(0, (centre - radius - 1).astype(int))
        high = np.minimum(SHAPE, (centre + radius + 2).astype(int))
        place = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[place]
        mask[place] |= sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2

    for i in range(lesions):
        centre, radius = rng.uniform((25, 50, 50), (130, 190, 190)), rng.uniform(2, 12)
        ball(masks[0], centre, radius)
        if i > 0:
            ball(masks[1], centre + rng.uniform(-2, 2, 3), radius * rng.uniform(0.8, 1.2))
    for _ in range(2):
        ball(masks[1], rng.uniform((25, 50, 50), (130, 190, 190)), 3)
    return masks[0], masks[1]


def challenge(r: Mask, p: Mask) -> None:
    """The steps of the challenge's code, whole volumes for each lesion."""
    from skimage.measure import label
    from surface_distance import metrics as surface

    element = ndi.generate_binary_structure(3, 2)
    found = surface.compute_surface_distances(r, p, SPACING)
    surface.compute_robust_hausdorff(found, 95)
    truth, predicted = label(r), label(p)
    joined = label(ndi.binary_dilation(r, element))
    combined = np.zeros_like(joined)
    for number in range(1, joined.max() + 1):
        combined += np.where((joined == number) & (truth > 0), number, 0)
    for number in range(1, combined.max() + 1):
        g = combined == number
        near = np.unique(predicted * ndi.binary_dilation(g, element))
        mine = np.isin(predicted, near[near > 0])
        (2.0 * np.logical_and(g, mine).sum()) / (g.sum() + mine.sum())
        found = surface.compute_surface_distances(g, mine, SPACING)
        if mine.any():
            surface.compute_robust_hausdorff(found, 95)


def monai(r: Mask, p: Mask) -> None:
    from monai import metrics

    a, b = (torch.from_numpy(m)[None, None].float() for m in (p, r))
    metrics.compute_dice(a, b)
    metrics.compute_hausdorff_distance(a, b, include_background=True, spacing=SPACING)
    metrics.compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=SPACING)
    metrics.compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=SPACING)
    metrics.compute_surface_dice(a, b, [1.0], include_background=True, spacing=SPACING)


def by_surface_distance(r: Mask, p: Mask) -> None:
    from monai.metrics import compute_dice
    from surface_distance import metrics as surface

    a, b = (torch.from_numpy(m)[None, None].float() for m in (p, r))
    compute_dice(a, b)
    found = surface.compute_surface_distances(r, p, SPACING)
    surface.compute_robust_hausdorff(found, 100)
    surface.compute_robust_hausdorff(found, 95)
    surface.compute_average_surface_distance(found)
    surface.compute_surface_dice_at_tolerance(found, 1.0)


def same_subset(r: Mask, p: Mask) -> None:
    """What ``monai`` and ``by_surface_distance`` compute, by metaseg."""
    confusion(r, p).scores()
    found = surface_distances(r, p, SPACING)
    found.hd(), found.hd95(), found.assd(), found.nsd(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    r, p = case()
    runs: dict[str, Callable[[], object]] = {
        "metaseg, all metrics": lambda: score(r, p, SPACING),
        "metaseg, brats-mets-2023": lambda: score(r, p, SPACING, "brats-mets-2023"),
        "metaseg, whole image alone": lambda: same_subset(r, p),
        "surface-distance + Dice": lambda: by_surface_distance(r, p),
        "MONAI": lambda: monai(r, p),
        "challenge's steps of 2023": lambda: challenge(r, p),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    everything, subset = medians["metaseg, all metrics"], medians["metaseg, whole image alone"]
    print(f"{'':28} {'s':>7}  all metrics / it  whole image / it")
    for name, median in medians.items():
        print(f"{name:28} {median:7.3f} {everything / median:17.3f} {subset / median:17.3f}")


if __name__ == "__main__":
    main()
