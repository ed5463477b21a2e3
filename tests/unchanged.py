"""Do two checkouts give the same results? ``python tests/unchanged.py BEFORE [AFTER]``.

Both prepare, train (seeded, one thread), predict, evaluate and follow the same inputs, each with the model that BEFORE
has trained: phantoms, and parts of the real images where METASEG_TEST_DATA names them. Every file is compared byte by
byte, then by what it says without times. Pages (HTML) and logs hold sentences, which may be improved, and the record of
settings their names; they are not compared. Exit code 1 for any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.common import ROOT
from tests.faults.results import OWN, content, files_of

_TINY = (
    *("--widths", "4,8", "--patch", "32", "--batch-size", "2", "--steps-per-epoch", "4", "--warmup-steps", "1"),
    *("--precision", "fp32", "--layout", "contiguous", "--device", "cpu"),
)
_NOT_COMPARED = (".html", ".txt", ".yaml", "environment.json", ".pt", "errors.log")


def metaseg(checkout: Path, arguments: Sequence[object], folder: Path) -> None:
    """One call of *checkout*'s program in *folder*, in one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "metaseg_cli", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{checkout}: metaseg {' '.join(map(str, arguments))}\n{done.stderr}")


def make_inputs(checkout: Path, folder: Path) -> dict[str, Path]:
    """Raw folders by name: phantoms made by *checkout*, and parts of the real images."""
    code = (
        "import sys; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "from metaseg_cli.core.phantom import PhantomSettings, write_phantom_pictures, write_phantom_volumes\n"
        "pictures = PhantomSettings(shape=(3, 64, 64), lesions=(2, 5), diameter_mm=(8.0, 25.0))\n"
        "write_phantom_pictures(folder / 'pictures' / 'train', 5, 3, pictures, seed=1)\n"
        "write_phantom_pictures(folder / 'pictures' / 'test', 2, 3, pictures, seed=1, first=6)\n"
        "volumes = PhantomSettings(shape=(16, 48, 48), spacing_mm=(3.0, 3.0, 3.0), sequences=('t1c', 't2f'))\n"
        "write_phantom_volumes(folder / 'volumes', 6, volumes, seed=2)\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], env={**os.environ, "PYTHONPATH": str(checkout)}, check=True)
    real = os.environ.get("METASEG_TEST_DATA")
    if real:
        lgg, hippocampus = Path(real, "lgg"), Path(real, "hippocampus")
        for patient in sorted(lgg.iterdir())[:4]:
            for path in sorted(patient.iterdir())[:24]:
                (folder / "lgg" / patient.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / "lgg" / patient.name)
        shutil.copytree(Path(real, "mets2d"), folder / "mets2d")
        shutil.copytree(Path(real, "dicom_t1"), folder / "dicom")
        shutil.copytree(Path(real, "brain_nrrd"), folder / "nrrd")
        for part in ("imagesTr", "labelsTr"):
            (folder / "hippocampus" / part).mkdir(parents=True)
            for path in sorted((hippocampus / part).glob("*.nii.gz"))[:8]:
                shutil.copy(path, folder / "hippocampus" / part)
        shutil.copy(hippocampus / "dataset.json", folder / "hippocampus")
    return {p.name: p for p in sorted(folder.iterdir())}


def run_all(checkout: Path, work: Path, inputs: dict[str, Path], models: dict[str, Path]) -> None:
    """Every call; *models* are the trained ones to predict and evaluate with, filled by the first checkout."""
    names = [name for name in inputs if name not in ("dicom", "nrrd")]
    first = not models

    def chain(name: str) -> None:
        folder, raw = work / name, inputs[name]
        network = "nested-unet" if name in ("mets2d", "volumes") else "attention-unet"
        metaseg(checkout, ("prepare", raw, "--folds", 2, "--workers", 1), folder)
        metaseg(checkout, ("train", "--model", network, "--epochs", 2, *_TINY), folder)
        if first:
            models[name] = next((folder / "runs").glob("*/model.safetensors"))
        model = folder / "model.safetensors"
        shutil.copy(models[name], model)
        scans = next(path for path in (raw / "imagesTr", raw / "test", raw) if path.exists())
        predict = ("predict", scans, "--model", model.name, "--backend", "torch")
        metaseg(checkout, (*predict, "--probabilities"), folder)
        metaseg(checkout, (*predict, "--out", "tta", "--tta", "--threshold", 0.3), folder)
        metaseg(checkout, ("evaluate", model.name, "--split", "all", "--out", "evaluation"), folder)
        metaseg(checkout, ("evaluate", model.name, model.name, "--split", "all", "--out", "comparison"), folder)
        labels = inputs[name] / "labelsTr"
        if labels.exists():
            by = ("--predictions", labels, "--references", labels)
            metaseg(checkout, ("evaluate", *by, "--out", "folders", "--protocol", "brats-mets-2023"), folder)
            visits = sorted(labels.iterdir())[:1] * 2
            metaseg(checkout, ("follow-up", *visits, "--out", "follow_up"), folder)

    def predict_series(name: str, model: str) -> None:
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(models[model], folder / "model.safetensors")
        source = inputs[name]
        metaseg(checkout, ("predict", source, "--model", "model.safetensors", "--backend", "torch"), folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(chain, names))
    for name in ("dicom", "nrrd"):
        if name in inputs:
            predict_series(name, "hippocampus")


def what_it_says(path: Path) -> object:
    """The content of *path* without times and without what is drawn at random: keys of hashes, identifiers."""
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            card = json.loads(file.metadata()["metaseg"])
            return {**card, "patients": len(card["patients"])}, file.metadata()["metaseg-weights-sha256"]
    if path.suffix == ".dcm":
        mask = pydicom.dcmread(path)
        places = [frame.PlanePositionSequence[0].to_json() for frame in mask.PerFrameFunctionalGroupsSequence]
        return mask.pixel_array.tobytes(), mask.SegmentSequence.__repr__(), places
    return content(path)


def differences(before: Path, after: Path) -> tuple[list[str], int, int]:
    """What differs between two folders of results, and how many files are equal byte by byte, and in content."""
    names = [{OWN.sub("RUN", str(p.relative_to(folder))): p for p in files_of(folder)} for folder in (before, after)]
    found = [f"only in one of them: {name}" for name in sorted(names[0].keys() ^ names[1].keys())]
    same_bytes = same_content = 0
    for name in sorted(names[0].keys() & names[1].keys()):
        one, other = (each[name] for each in names)
        if one.read_bytes() == other.read_bytes():
            same_bytes += 1
        elif name.endswith(_NOT_COMPARED):
            continue
        elif what_it_says(one) == what_it_says(other):
            same_content += 1
        else:
            found.append(f"differs: {name}")
    return found, same_bytes, same_content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout of the code as it was")
    parser.add_argument("after", type=Path, nargs="?", default=ROOT, help="this checkout, unless named")
    parser.add_argument("--keep", type=Path, help="folder for inputs and results, to look into; what is there is used")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unchanged-") as temporary:
        work = options.keep or Path(temporary)
        if (work / "inputs").exists():
            inputs = {p.name: p for p in sorted((work / "inputs").iterdir())}
            models = {p.parents[2].name: p for p in (work / "before").glob("*/runs/*/model.safetensors")}
        else:
            (work / "inputs").mkdir(parents=True)
            inputs, models = make_inputs(options.before.resolve(), work / "inputs"), {}
            run_all(options.before.resolve(), work / "before", inputs, models)
        shutil.rmtree(work / "after", ignore_errors=True)
        run_all(options.after.resolve(), work / "after", inputs, models)
        found, same_bytes, same_content = differences(work / "before", work / "after")
    print(*found, sep="\n")
    print(f"{same_bytes} files equal byte by byte, {same_content} apart from times, {len(found)} differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
