"""`metaseg prepare` against nnU-Net v2's plan_and_preprocess: time and size, one and two processes, side by side.

    python tests/benchmarks/prepare.py DATA --nnunet VENV/bin [--rounds 3]

DATA holds ``hippocampus`` (a Decathlon folder) and ``lgg`` (a folder per patient with .tif slices). nnU-Net lives in an
environment of its own. It gets one configuration only (3d_fullres, 2d): planning more would cost it more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image


def hippocampus_for_nnunet(data: Path, raw: Path) -> Path:
    """The Decathlon folder in nnU-Net's layout."""
    out = raw / "Dataset001_Hippocampus"
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True)
    images = sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    for image in images:
        stem = image.name.removesuffix(".nii.gz")
        shutil.copy(image, out / "imagesTr" / f"{stem}_0000.nii.gz")
        shutil.copy(data / "hippocampus" / "labelsTr" / image.name, out / "labelsTr" / image.name)
    describe(out, {"0": "MRI"}, {"background": 0, "anterior": 1, "posterior": 2}, len(images), ".nii.gz")
    return out


def lgg_for_nnunet(data: Path, raw: Path) -> Path:
    """The slices as nnU-Net wants natural images: PNG, masks of 0 and 1."""
    out = raw / "Dataset002_LGG"
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True)
    masks = sorted((data / "lgg").rglob("*_mask.tif"))
    for mask in masks:
        stem = mask.name.removesuffix("_mask.tif")
        with Image.open(mask.with_name(f"{stem}.tif")) as image:
            image.save(out / "imagesTr" / f"{stem}_0000.png")
        with Image.open(mask) as label:
            label.point(lambda v: int(v > 0)).save(out / "labelsTr" / f"{stem}.png")
    describe(out, {"0": "R", "1": "G", "2": "B"}, {"background": 0, "tumour": 1}, len(masks), ".png")
    return out


def describe(out: Path, channels: dict[str, str], labels: dict[str, int], count: int, ending: str) -> None:
    listing = {"channel_names": channels, "labels": labels, "numTraining": count, "file_ending": ending}
    (out / "dataset.json").write_text(json.dumps(listing))


def size(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def timed(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--nnunet", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="metaseg-bench-"))
    environment = {**os.environ, "nnUNet_raw": str(work / "raw"), "nnUNet_preprocessed": str(work / "nn")}
    environment |= {"nnUNet_results": str(work / "results")}
    sets = {
        "hippocampus": (1, "3d_fullres", hippocampus_for_nnunet(given.data, work / "raw")),
        "lgg": (2, "2d", lgg_for_nnunet(given.data, work / "raw")),
    }
    print("data         processes  metaseg s  nnU-Net s  ratio  metaseg MB  nnU-Net MB")
    for name, (number, configuration, raw) in sets.items():
        for workers in (1, 2):
            ours, theirs = [], []
            for _ in range(given.rounds):  # interleaved: what else the machine does hits both
                shutil.rmtree(work / "ours", ignore_errors=True)
                shutil.rmtree(work / "nn", ignore_errors=True)
                command = [sys.executable, "-m", "metaseg_cli", "prepare", str(given.data / name), "--quiet"]
                ours.append(timed([*command, "--workers", str(workers), "--out", str(work / "ours")], environment))
                command = [str(given.nnunet / "nnUNetv2_plan_and_preprocess"), "-d", str(number), "-c", configuration]
                theirs.append(timed([*command, "-np", str(workers), "-npfp", str(workers)], environment))
            a, b = statistics.median(ours), statistics.median(theirs)
            theirs_mb = size(work / "nn" / raw.name)
            print(
                f"{name:12} {workers:9} {a:10.1f} {b:10.1f} {a / b:6.2f} {size(work / 'ours'):11.1f} {theirs_mb:11.1f}"
            )
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
