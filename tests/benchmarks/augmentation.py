"""Patches per second of our augmentation and of MONAI's transforms of the same kinds, on one core, in one run.

    python tests/benchmarks/augmentation.py [--rounds 30]

Both get the same chances: rotation, scaling, elastic deformation and flips of image and mask together, then bias field,
Gibbs ringing, blur, low resolution, contrast (gamma), brightness and noise. MONAI's chain works patch by patch, as its
data loaders do; ours on the batch. Every round draws anew, and draws differ in what they cost: hence sums over many
rounds, not medians. MONAI comes with the ``test`` extra.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor

from metaseg_cli.core.augmentation import Augmentation, apply, draw


def ours(image: Tensor, target: Tensor) -> Callable[[int], None]:
    settings = Augmentation(flip_axes=tuple(range(-1, 1 - image.dim(), -1)))

    def run(seed: int) -> None:
        apply(image, target, draw(settings, tuple(image.shape), np.random.default_rng(seed)))

    return run


def monai(image: Tensor, target: Tensor) -> Callable[[int], None]:
    from monai import transforms as t

    a = Augmentation()
    dims = image.dim() - 2
    both = ["image", "mask"]
    angle = float(np.deg2rad(a.rotation))
    tilt = float(np.deg2rad(a.tilt))
    chain = [
        t.RandAffined(
            both,
            prob=a.spatial,
            rotate_range=[angle] if dims == 2 else [angle, tilt, tilt],
            scale_range=[0.3] * dims,
            mode=["bilinear", "nearest"],
            padding_mode="border",
        ),
        t.Rand2DElasticd(both, spacing=(32, 32), magnitude_range=(1, 3), prob=a.elastic, mode=["bilinear", "nearest"])
        if dims == 2
        else t.Rand3DElasticd(
            both, sigma_range=(5, 8), magnitude_range=(50, 150), prob=a.elastic, mode=["bilinear", "nearest"]
        ),
        *(t.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(dims)),
        t.RandGaussianSmoothd(["image"], prob=a.each),
        t.RandSimulateLowResolutiond(["image"], prob=a.each, upsample_mode="bilinear" if dims == 2 else "trilinear"),
        t.RandGibbsNoised(["image"], prob=a.rarely),
        t.RandScaleIntensityd(["image"], factors=0.3, prob=a.each),
        t.RandShiftIntensityd(["image"], offsets=0.3, prob=a.each),
        t.RandAdjustContrastd(["image"], prob=a.each, gamma=a.gamma),
        t.RandBiasFieldd(["image"], prob=a.rarely),
        t.RandGaussianNoised(["image"], prob=a.each, std=a.noise),
    ]
    composed = t.Compose(chain)

    def run(seed: int) -> None:
        composed.set_random_state(seed)
        for each, mask in zip(image, target, strict=True):
            composed({"image": each, "mask": mask})

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for shape in ((16, 1, 160, 160), (4, 1, 64, 64, 64)):
        image = torch.rand(shape) * 3
        target = (torch.rand(shape) > 0.99).float()
        runs = {"metaseg": ours(image, target), "MONAI": monai(image, target)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run(0)
        for seed in range(1, arguments.rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                run(seed)
                times[name].append(time.perf_counter() - began)
        rate = {name: shape[0] / statistics.fmean(values) for name, values in times.items()}
        print(
            f"{'×'.join(map(str, shape))}: metaseg {rate['metaseg']:.0f}, MONAI {rate['MONAI']:.0f} patches a second, "
            f"{rate['metaseg'] / rate['MONAI']:.1f} times as many",
            flush=True,
        )


if __name__ == "__main__":
    main()
