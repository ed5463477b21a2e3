"""Both networks against nnU-Net v2 at an equal budget of time, on one split into patients to train, choose and test.

    python tests/benchmarks/equal_budget.py slices LGG --minutes 25 --seeds 3 --nnunet VENV/bin/python
    python tests/benchmarks/equal_budget.py volumes HIPPOCAMPUS --minutes 15 --seeds 3 --nnunet VENV/bin/python

*LGG* holds a folder of slices and masks for each patient; they are resized to 128 × 128, 22 patients train, 4 choose
the model and 6 test. *HIPPOCAMPUS* is a Decathlon folder: 33 volumes train (4 of them choose the model), 11 test.
VENV has nnunetv2; its part is in ``nnunet_peer.py``. Runs follow one another: leave the machine alone meanwhile.
Finished runs under ``--work`` are not repeated, so an interrupted series can be gone on with.

Scores are made alike of everybody's masks: voxels of a patient pooled for Dice, lesions of all test patients for F1.
``--smallest 64`` first drops components below 64 voxels from everybody's masks, in slices from each by itself, with
metaseg's own post-processing: it shows what of a lead comes from such a filter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from metaseg_cli.core.images import read_mask
from metaseg_cli.core.metrics import confusion, lesion_scores, match_lesions
from metaseg_cli.core.postprocessing import Postprocessing, to_mask

NETWORKS = ("attention-unet", "nested-unet", "nnunet")
SIZE = 128


def split(names: list[str], counts: tuple[int, int, int]) -> dict[str, str]:
    """A fixed shuffle of *names*: the first train, the next choose, the last test."""
    shuffled = [names[i] for i in np.random.default_rng(2026).permutation(len(names))]
    kinds = [kind for kind, count in zip(("train", "val", "test"), counts, strict=True) for _ in range(count)]
    return dict(zip(shuffled, kinds, strict=False))


def make_slices(source: Path, raw: Path) -> None:
    """Slices and masks as PNG of 128 × 128 under ``train``, ``val`` and ``test``, a folder for each patient."""
    patients = sorted(p.name for p in source.iterdir() if p.is_dir())
    kinds = split(patients, (22, 4, 6))
    for patient, kind in kinds.items():
        target = raw / kind / patient
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((source / patient).glob("*.tif")):
            how = Image.Resampling.NEAREST if "_mask" in file.name else Image.Resampling.BOX
            Image.open(file).resize((SIZE, SIZE), how).save(target / f"{file.stem}.png")


def make_volumes(source: Path, raw: Path) -> None:
    """A manifest that names for each volume what it is for."""
    files = sorted(f for f in (source / "imagesTr").glob("*.nii*") if not f.name.startswith("."))
    kinds = split([f.name for f in files], (29, 4, 11))
    raw.mkdir(parents=True, exist_ok=True)
    rows = ["case,patient,mask,image,split"]
    for file in files:
        name = file.name.removesuffix(".gz").removesuffix(".nii")
        mask = (source / "labelsTr" / file.name).resolve()
        rows.append(f"{name},{name},{mask},{file.resolve()},{kinds[file.name]}")
    (raw / "cases.csv").write_text("\n".join(rows) + "\n")


def run(command: list[str]) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def stacks(folder: Path) -> dict[str, np.ndarray]:
    """Masks by patient: slices of a patient's folder stacked by their number, volumes as they are."""
    if any(folder.glob("*.nii.gz")):
        named = {f.name.removesuffix(".nii.gz").removesuffix("_mask"): f for f in sorted(folder.glob("*.nii.gz"))}
        return {name: read_mask(file).array for name, file in named.items()}
    result = {}
    for patient in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(patient.glob("*_mask.png"), key=lambda f: int(f.stem.removesuffix("_mask").rpartition("_")[2]))
        result[patient.name] = np.concatenate([read_mask(file).array for file in files])
    return result


def without_specks(mask: np.ndarray, smallest: int) -> np.ndarray:
    """*mask* ``(Z, Y, X)``, or slices ``(N, 1, Y, X)``, without components of fewer than *smallest* voxels."""
    if mask.ndim == 4:
        return np.stack([without_specks(each, smallest) for each in mask])
    return to_mask((mask > 0).astype(np.float32), Postprocessing(min_size=smallest))


def scores(predictions: Path, references: dict[str, np.ndarray], smallest: int) -> dict[str, float]:
    found = stacks(predictions)
    dice, counts = [], np.zeros(3, int)
    for patient, reference in references.items():
        mask = without_specks(found[patient], smallest)
        dice.append(confusion(reference, mask).scores()["dice"])
        match = match_lesions(reference, mask)
        counts += (match.lesion_tp, match.lesion_fp, match.lesion_fn)
    return {"dice": float(np.mean(dice)), **lesion_scores(*(int(c) for c in counts))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("slices", "volumes"))
    parser.add_argument("source", type=Path)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--nnunet", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--smallest", type=int, default=0, help="voxels below which components are dropped")
    parser.add_argument("--work", type=Path, default=Path("equal_budget"))
    parser.add_argument("--options", default="", help="further options of metaseg train")
    parser.add_argument("--tag", default="", help="marks runs with other options")
    arguments = parser.parse_args()
    work = arguments.work / arguments.kind
    raw, prepared = work / "raw", work / "prepared"
    metaseg = [sys.executable, "-m", "metaseg_cli"]
    if not raw.exists():
        (make_slices if arguments.kind == "slices" else make_volumes)(arguments.source, raw)
    if not prepared.exists():
        what = [str(raw)] if arguments.kind == "slices" else [str(raw), "--manifest", str(raw / "cases.csv")]
        run([*metaseg, "prepare", *what, "--out", str(prepared), "--quiet"])
    if arguments.kind == "slices":
        references = stacks(raw / "test")
        scans = [str(p) for p in sorted((raw / "test").rglob("*.png")) if "_mask" not in p.name]
    else:
        rows = [line.split(",") for line in (raw / "cases.csv").read_text().splitlines()[1:]]
        test = [row for row in rows if row[4] == "test"]
        references = {row[0]: read_mask(Path(row[2])).array > 0 for row in test}
        scans = [row[3] for row in test]
    table: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        for network in arguments.networks.split(","):
            name = f"{network}{arguments.tag}-{arguments.minutes:g}-{seed}"
            predictions = work / "predictions" / name
            if not (predictions / "done").exists():
                if network == "nnunet":
                    peer = str(Path(__file__).with_name("nnunet_peer.py"))
                    options = ["--minutes", str(arguments.minutes), "--seed", str(seed), "--out", str(predictions)]
                    run([str(arguments.nnunet), peer, arguments.kind, str(work), *options])
                else:
                    runs = work / "runs" / name
                    options = ["--max-minutes", str(arguments.minutes), "--epochs", "100000", "--seed", str(seed)]
                    options += ["--out", str(runs), *arguments.options.split()]
                    run([*metaseg, "train", "--data", str(prepared), "--model", network, *options])
                    model = str(max(runs.glob("*/model.safetensors"), key=lambda f: f.stat().st_mtime))
                    flat = work / "flat" / name
                    options = ["--model", model, "--out", str(flat), "--overwrite", "--no-overlay", "--quiet"]
                    run([*metaseg, "predict", *scans, *options])
                    gather(flat, predictions, raw / "test" if arguments.kind == "slices" else None)
                (predictions / "done").touch()
            table.setdefault(network, []).append(scores(predictions, references, arguments.smallest))
            print(name, json.dumps(table[network][-1]), flush=True)
    print(f"\n{arguments.minutes:g} minutes, {arguments.seeds} seeds, {len(references)} test patients")
    for network, rows_ in table.items():
        dice = [row["dice"] for row in rows_]
        f1 = [row["lesion_f1"] for row in rows_]
        print(f"{network:15} Dice {np.mean(dice):.3f} ({np.round(dice, 3)})  F1 {np.mean(f1):.3f} ({np.round(f1, 3)})")


def gather(flat: Path, predictions: Path, patients: Path | None) -> None:
    """Masks of ``metaseg predict`` where ``stacks`` looks for them."""
    for patient in sorted(patients.iterdir()) if patients else ():
        (predictions / patient.name).mkdir(parents=True, exist_ok=True)
        for file in flat.glob(f"{patient.name}_*_mask.png"):
            file.replace(predictions / patient.name / file.name)
    predictions.mkdir(parents=True, exist_ok=True)
    for file in flat.glob("*_mask.nii.gz"):
        file.replace(predictions / file.name)


if __name__ == "__main__":
    main()
