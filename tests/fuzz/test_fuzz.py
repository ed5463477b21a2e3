"""A share of the fuzzer's mutants, and whole batches of them: nothing crashes, nothing is lost, and all are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.kinds import KINDS
from tests.fuzz.mutations import mutant
from tests.fuzz.runner import fuzz

MUTANTS = 40
TRAINS = ("checkpoint", "prepare-again")  # a second each
BATCH = 100
PICTURES = ("png", "jpeg", "tiff", "bmp")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_mutants_are_read_or_refused(name: str, tmp_path: Path) -> None:
    tally = fuzz(name, range(6 if name in TRAINS else MUTANTS), tmp_path)
    assert not tally.faults, tally.faults[0]


def metaseg(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metaseg_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """File name → damaged content, of pictures and volumes."""
    files = {}
    for kind in (*PICTURES, "nii", "nii-gz", "nrrd", "mha"):
        whole = KINDS[kind].make(tmp_path_factory.mktemp(kind))
        suffix = "".join(whole.suffixes)
        for seed in range(BATCH // 8 + 1):
            files[f"{kind}{seed}{suffix}"] = mutant(whole.read_bytes(), seed)
    return files


def head(seed: int) -> Image.Image:
    y, x = np.mgrid[:64, :64]
    noise = np.random.default_rng(seed).normal(100, 10, (64, 64))
    return Image.fromarray(np.where(np.hypot(y - 32, x - 32) < 25, noise, 3).clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_predict_does_the_good_scan_among_mutants(mutants: dict[str, bytes], trained: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, data in mutants.items():
        (folder / name).write_bytes(data)
    head(0).save(folder / "good.png")
    done = metaseg("predict", folder, "--model", trained, "--out", out, "--json", "--no-overlay")
    assert done.returncode in (0, 1), done.stderr[-2000:]
    document = json.loads(done.stdout)
    scans = {Path(scan["scan"]).name for scan in document["scans"]}
    assert "good.png" in scans
    assert scans | {Path(p["file"]).name for p in document["problems"]} >= set(mutants)
    assert not (out / "errors.log").exists(), (out / "errors.log").read_text()


def test_prepare_does_the_good_case_among_mutants(mutants: dict[str, bytes], tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "prepared"
    for part in ("images", "masks"):
        (raw / part).mkdir(parents=True)
    pictures = {name: data for name, data in mutants.items() if name.startswith(PICTURES)}
    for name, data in pictures.items():
        # In turn the image and the mask of a case are damaged.
        first, second = ("images", "masks") if len(name) % 2 else ("masks", "images")
        (raw / first / name).write_bytes(data)
        head(len(name)).save(raw / second / f"{Path(name).stem}.png")
    for n in range(2):
        head(n).save(raw / "images" / f"good{n}.png")
        Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(raw / "masks" / f"good{n}.png")
    done = metaseg("prepare", raw, "--out", out, "--json")
    assert done.returncode in (0, 1), done.stderr[-2000:]
    document = json.loads(done.stdout)
    cases = {case["case"] for case in document["cases"]}
    assert {"good0", "good1"} <= cases
    named = {Path(p["file"]).stem for p in document["problems"]}
    assert {Path(name).stem for name in pictures} <= cases | named
    assert not (out / "errors.log").exists(), (out / "errors.log").read_text()


def test_evaluate_scores_the_good_pair_among_mutants(mutants: dict[str, bytes], tmp_path: Path) -> None:
    truth, found, out = tmp_path / "truth", tmp_path / "found", tmp_path / "out"
    truth.mkdir()
    found.mkdir()
    mask = Image.fromarray(np.eye(20, 24, dtype=np.uint8) * 255)
    pictures = {name: data for name, data in mutants.items() if name.startswith(PICTURES)}
    for name, data in pictures.items():
        (found / name).write_bytes(data)
        mask.save(truth / f"{Path(name).stem}.png")
    for folder in (truth, found):
        mask.save(folder / "good.png")
    done = metaseg("evaluate", "--predictions", found, "--references", truth, "--out", out, "--json")
    assert done.returncode in (0, 1), done.stderr[-2000:]
    scores = {c["case"]: c["regions"]["metastasis"]["dice"] for c in json.loads(done.stdout)["cases"]}
    assert scores["good"] == 1
    assert set(scores) == {"good", *(Path(name).stem for name in pictures)}
    assert not (out / "errors.log").exists(), (out / "errors.log").read_text()
