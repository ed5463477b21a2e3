"""How many metastases of 2 to 5 mm are found on phantoms that nobody trained on, after half an hour of processor time.

    python tests/benchmarks/small_lesions.py [--minutes 15] [--model attention-unet] [--work small_lesions]

280 volumes of 40 × 176 × 144 voxels of 1 mm with 1 to 8 lesions each, and vessels and plexus that look like them:
240 train (12 of them choose epoch, threshold and smallest lesion) and 40 test. *minutes* is wall time: on two cores
15 are 30 of processor time. Prints recall and false lesions per case on the test volumes, as the model is used and
where its FROC curve has at most one false lesion per case.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_volumes

SMALL = PhantomSettings(shape=(40, 176, 144), spacing_mm=(1.0, 1.0, 1.0), lesions=(1, 8), diameter_mm=(2.0, 5.0))
TRAINING, TEST, FOLDS = 240, 40, 20


def metaseg(*arguments: str) -> str:
    command = [sys.executable, "-m", "metaseg_cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make(folder: Path) -> None:
    """Volumes, and a manifest that says which are for the test."""
    write_phantom_volumes(folder, TRAINING + TEST, SMALL, seed=3)
    rows = ["case,patient,mask,t1c,split"]
    for number, file in enumerate(sorted((folder / "imagesTr").glob("*.nii.gz"))):
        name = file.name.removesuffix(".nii.gz")
        part = "train" if number < TRAINING else "test"
        rows.append(f"{name},{name},labelsTr/{file.name},imagesTr/{file.name},{part}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", default="15")
    parser.add_argument("--model", default="attention-unet")
    parser.add_argument("--options", default="", help="further options of metaseg train")
    parser.add_argument("--work", type=Path, default=Path("small_lesions"))
    arguments = parser.parse_args()
    raw, prepared = arguments.work / "raw", arguments.work / "prepared"
    if not raw.exists():
        make(raw)
    manifest = ["--manifest", str(raw / "cases.csv"), "--folds", str(FOLDS)]
    metaseg("prepare", str(raw), *manifest, "--out", str(prepared), "--quiet")
    options = ["--model", arguments.model, "--max-minutes", arguments.minutes, "--epochs", "100000"]
    options += ["--out", str(arguments.work / "runs"), *arguments.options.split()]
    trained = json.loads(metaseg("train", "--data", str(prepared), *options, "--json"))
    scored = json.loads(metaseg("evaluate", trained["run"], "--data", str(prepared), "--split", "test", "--json"))
    counts = [case["regions"]["metastasis"] for case in scored["cases"]]
    found, missed, false = (sum(c[f"lesion_{k}"] for c in counts) for k in ("tp", "fn", "fp"))
    print(
        f"recall {found / (found + missed):.3f} of {found + missed}, {false / len(counts):.2f} false lesions per case"
    )
    froc = scored["confidence"]["metastasis"]["froc"]
    at_one = max(r for f, r in zip(froc["false_per_case"], froc["recall"], strict=True) if f <= 1)
    print(f"recall {at_one:.3f} at one false lesion per case")


if __name__ == "__main__":
    main()
