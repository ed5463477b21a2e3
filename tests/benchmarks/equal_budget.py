"""Both networks against nnU-Net v2 at an equal budget of time: recall by size of lesion, and the free-response curve.

    python tests/benchmarks/equal_budget.py slices LGG --minutes 20 --folds 0,1,2,3,4 --nnunet VENV/bin/python
    python tests/benchmarks/equal_budget.py volumes HIPPOCAMPUS --minutes 15 --seeds 3 --nnunet VENV/bin/python

*LGG* holds a folder of slices and masks for each patient; they are resized to 128 × 128. Of 32 patients, each fold
tests six or seven, four others choose the model and the rest train. *HIPPOCAMPUS* is a Decathlon folder: 33 volumes
train (4 of them choose the model), 11 test. VENV has nnunetv2; its part is in ``nnunet_peer.py``. Runs follow one
another: leave the machine alone meanwhile. Finished runs under ``--work`` are not repeated: the same command continues
an interrupted series.

Everybody's probabilities are scored alike, so that no filter decides who is ahead: of all thresholds and confidences,
the most lesions that are found at a number of false lesions per patient, of all lesions and of their smaller half.
Masks are scored too, those of each operating point of metaseg. In slices a lesion is what one slice shows of it; Dice
pools the voxels of a patient. Tables are over the test patients of all folds together, the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaseg_cli import load_model
from metaseg_cli.core.choices import OPERATING_POINTS
from metaseg_cli.core.detection import label_lesions, overlaps
from metaseg_cli.core.images import read_mask
from metaseg_cli.core.inference.predictor import RawPrediction
from metaseg_cli.core.metrics import confusion, lesion_scores
from metaseg_cli.core.training.detections import THRESHOLDS, CaseDetections, DetectionTable, detect

NETWORKS = ("attention-unet", "nested-unet", "nnunet")
SIZE = 128
FOLDS = 5
FALSE_PER_PATIENT = (0.25, 0.5, 1.0, 2.0, 4.0)
AREAS = ((1, 8), (8, 32), (32, 128), (128, 512), (512, 10**9))  # of a lesion in its slice, in pixels


@dataclass(frozen=True)
class Scores:
    """What masks give on all test patients together."""

    found: tuple[int, ...]  # by area
    lesions: tuple[int, ...]
    false: int
    dice: float
    f1: float


def parts(names: list[str], fold: int | None, counts: tuple[int, int, int]) -> dict[str, str]:
    """Which of *names* train, choose and test: of a fold, or by *counts* of one fixed shuffle."""
    shuffled = [names[i] for i in np.random.default_rng(2026).permutation(len(names))]
    if fold is None:
        kinds = [kind for kind, count in zip(("train", "val", "test"), counts, strict=True) for _ in range(count)]
        return dict(zip(shuffled, kinds, strict=False))
    test = shuffled[fold::FOLDS]
    rest = [name for name in shuffled if name not in test]
    return {name: "test" if name in test else "val" if name in rest[:4] else "train" for name in names}


def make_slices(source: Path, raw: Path, fold: int) -> None:
    """Slices and masks as PNG of 128 × 128 under ``train``, ``val`` and ``test``, a folder for each patient."""
    patients = sorted(p.name for p in source.iterdir() if p.is_dir())
    for patient, kind in parts(patients, fold, (0, 0, 0)).items():
        target = raw / kind / patient
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((source / patient).glob("*.tif")):
            how = Image.Resampling.NEAREST if "_mask" in file.name else Image.Resampling.BOX
            Image.open(file).resize((SIZE, SIZE), how).save(target / f"{file.stem}.png")


def make_volumes(source: Path, raw: Path) -> None:
    """A manifest that names for each volume what it is for."""
    files = sorted(f for f in (source / "imagesTr").glob("*.nii*") if not f.name.startswith("."))
    kinds = parts([f.name for f in files], None, (29, 4, 11))
    raw.mkdir(parents=True, exist_ok=True)
    rows = ["case,patient,mask,image,split"]
    for file in files:
        name = file.name.removesuffix(".gz").removesuffix(".nii")
        mask = (source / "labelsTr" / file.name).resolve()
        rows.append(f"{name},{name},{mask},{file.resolve()},{kinds[file.name]}")
    (raw / "cases.csv").write_text("\n".join(rows) + "\n")


def run(command: list[str]) -> None:
    print("+", " ".join(command)[:400], flush=True)
    subprocess.run(command, check=True)


def test_cases(kind: str, raw: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Scan and mask of the test patients: one file for a volume, for slices one each, in their order."""
    if kind == "volumes":
        rows = [line.split(",") for line in (raw / "cases.csv").read_text().splitlines()[1:]]
        return {row[0]: [(Path(row[3]), Path(row[2]))] for row in rows if row[4] == "test"}
    found = {}
    for patient in sorted((raw / "test").iterdir()):
        masks = sorted(patient.glob("*_mask.png"), key=lambda f: int(f.stem.removesuffix("_mask").rpartition("_")[2]))
        found[patient.name] = [(mask.with_name(mask.name.replace("_mask", "")), mask) for mask in masks]
    return found


def predict(model_file: Path, cases: dict[str, list[tuple[Path, Path]]], out: Path) -> None:
    """Write the probabilities of each test patient, and the masks of each operating point and of none (``plain``)."""
    models = {point: load_model(model_file, operating_point=point) for point in OPERATING_POINTS}
    first = next(iter(models.values()))
    for patient, files in cases.items():
        stacks: dict[str, list[Any]] = {}
        for scan, _ in files:
            plain = first.predict(scan, postprocess=False)
            raw = RawPrediction(plain.probabilities)
            stacks.setdefault("probability", []).append(plain.probabilities.max(axis=0).astype(np.float16))
            stacks.setdefault("plain", []).append(plain.masks.any(axis=0))
            for point, model in models.items():
                masks = model.postprocess(plain.source, raw, model.postprocessing()).masks
                stacks.setdefault(point, []).append(masks.any(axis=0))
        arrays: dict[str, Any] = {name: np.concatenate(each) for name, each in stacks.items()}
        np.savez_compressed(out / f"{patient}.npz", **arrays)


def score_masks(pairs: list[tuple[np.ndarray, np.ndarray]], *, per_slice: bool) -> Scores:
    """Score (reference, mask) of each patient."""
    found, lesions = np.zeros(len(AREAS), int), np.zeros(len(AREAS), int)
    false, true, dice = 0, 0, []
    for reference, mask in pairs:
        dice.append(confusion(reference, mask).scores()["dice"])
        truth, count = label_lesions(reference, per_slice=per_slice)
        predicted, number = label_lesions(mask, per_slice=per_slice)
        touching = overlaps(truth, predicted)[0]
        hit = np.isin(np.arange(1, count + 1), touching[:, 0])
        false += number - len(np.unique(touching[:, 1]))
        true += int(hit.sum())
        size = np.bincount(truth.ravel(), minlength=count + 1)[1:]
        for i, (low, high) in enumerate(AREAS):
            own = (size >= low) & (size < high)
            found[i] += int(hit[own].sum())
            lesions[i] += int(own.sum())
    f1 = lesion_scores(true, false, int(lesions.sum()) - true)["lesion_f1"]
    return Scores(tuple(found.tolist()), tuple(lesions.tolist()), false, float(np.mean(dice)), f1)


def free_response(cases: list[CaseDetections]) -> dict[str, list[float]]:
    """The highest recall, of all lesions and of the smaller half, at each of ``FALSE_PER_PATIENT``."""
    best = {"all": [0.0] * len(FALSE_PER_PATIENT), "smaller half": [0.0] * len(FALSE_PER_PATIENT)}
    for threshold in THRESHOLDS:
        table = DetectionTable(cases, 0, threshold)
        for i, limit in enumerate(FALSE_PER_PATIENT):
            hit = table.found(table.most_confident(limit * table.patients))
            best["all"][i] = max(best["all"][i], float(hit.mean()))
            best["smaller half"][i] = max(best["smaller half"][i], float(hit[table.smaller_half].mean()))
    return best


def train_and_predict(network: str, seed: int, work: Path, arguments: argparse.Namespace) -> Path:
    """Return the folder with what *network* predicts for the test patients of *work*."""
    out = work / "predictions" / f"{network}{arguments.tag}-{arguments.minutes:g}-{seed}"
    if (out / "done").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    minutes = str(arguments.minutes)
    if network == "nnunet":
        peer = str(Path(__file__).with_name("nnunet_peer.py"))
        options = ["--minutes", minutes, "--seed", str(seed), "--out", str(out)]
        run([str(arguments.nnunet), peer, arguments.kind, str(work), *options])
    else:
        runs = work / "runs" / out.name
        options = ["--max-minutes", minutes, "--epochs", "100000", "--seed", str(seed), "--out", str(runs)]
        command = [sys.executable, "-m", "metaseg_cli", "train", "--data", str(work / "prepared"), "--model", network]
        run([*command, *options, *arguments.options.split()])
        model = max(runs.glob("*/model.safetensors"), key=lambda f: f.stat().st_mtime)
        predict(model, test_cases(arguments.kind, work / "raw"), out)
    (out / "done").touch()
    return out


def prepare(work: Path, arguments: argparse.Namespace, fold: int) -> None:
    raw, prepared = work / "raw", work / "prepared"
    if not raw.exists():
        if arguments.kind == "slices":
            make_slices(arguments.source, raw, fold)
        else:
            make_volumes(arguments.source, raw)
    if not prepared.exists():
        what = [str(raw)] if arguments.kind == "slices" else [str(raw), "--manifest", str(raw / "cases.csv")]
        run([sys.executable, "-m", "metaseg_cli", "prepare", *what, "--out", str(prepared), "--quiet"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("slices", "volumes"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", default="0", help="of the slices, such as 0,1,2,3,4")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--nnunet", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--work", type=Path, default=Path("equal_budget"))
    parser.add_argument("--options", default="", help="further options of metaseg train")
    parser.add_argument("--tag", default="", help="marks runs with other options")
    arguments = parser.parse_args()
    per_slice = arguments.kind == "slices"
    folds = [int(fold) for fold in arguments.folds.split(",")] if per_slice else [0]
    for network in arguments.networks.split(","):
        curves, masks = [], []
        for seed in range(arguments.seeds):
            detected: list[CaseDetections] = []
            pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
            for fold in folds:
                work = arguments.work / (f"slices-{fold}" if per_slice else "volumes")
                prepare(work, arguments, fold)
                out = train_and_predict(network, seed, work, arguments)
                for patient, files in test_cases(arguments.kind, work / "raw").items():
                    truth = np.concatenate([read_mask(mask).array[0] > 0 for _, mask in files])
                    with np.load(out / f"{patient}.npz") as predicted:
                        probability = predicted["probability"].astype(np.float32)
                        detected.append(
                            detect(patient, patient, None, probability[None], truth[None], per_slice=per_slice)
                        )
                        for name in predicted.files:
                            if name != "probability":
                                pairs.setdefault(name, []).append((truth, predicted[name]))
            curves.append(free_response(detected))
            masks.append({name: score_masks(each, per_slice=per_slice) for name, each in pairs.items()})
        report(network, len(detected), curves, masks)


def report(network: str, patients: int, curves: list[dict[str, list[float]]], masks: list[dict[str, Scores]]) -> None:
    """Print means over seeds."""
    print(f"\n{network}, {patients} test patients, seeds {len(curves)}")
    print("false lesions per patient   " + "".join(f"{limit:>8g}" for limit in FALSE_PER_PATIENT))
    for which in ("all", "smaller half"):
        means = np.mean([curve[which] for curve in curves], axis=0)
        print(f"recall, {which:20}" + "".join(f"{value:8.3f}" for value in means))
    print("masks: found by area " + ", ".join(f"{low}+" for low, _ in AREAS) + "; false; Dice; lesion F1")
    for name in masks[0]:
        each = [seed[name] for seed in masks]
        found = np.mean([one.found for one in each], axis=0)
        sizes = ", ".join(f"{n:.0f} of {of}" for n, of in zip(found, each[0].lesions, strict=True))
        false, dice, f1 = (np.mean([getattr(one, key) for one in each]) for key in ("false", "dice", "f1"))
        print(f"  {name:10} {sizes}; {false:.0f}; {dice:.3f}; {f1:.3f}")
    print(json.dumps({"network": network, "curves": curves}), flush=True)


if __name__ == "__main__":
    main()
