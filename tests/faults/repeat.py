"""Predict the same scans again and again: ``python tests/faults/repeat.py --calls 20 --seed 0``.

Each call is a process of its own, with the scans in another order, in batches of another size, with a cold or a warm
cache of compiled networks, and sometimes with another program busy. The masks must be bit-identical within each
backend. Without ``--model`` and scans it trains a small network on phantoms first. Exit code 1 for any difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.common import ROOT

BACKENDS = ("auto", "openvino", "torch")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of predict: which scans, in which order, by which backend, and in which surroundings."""

    backend: str
    scans: tuple[Path, ...]
    cold: bool  # without what earlier calls compiled
    busy: bool  # while another program takes the processor


def calls(scans: Sequence[Path], number: int, seed: int) -> list[Call]:
    """Return *number* calls that together predict each scan several times with each backend."""
    rng = np.random.default_rng(seed)
    found: list[Call] = []
    while len(found) < number:
        for backend in BACKENDS:
            order = [scans[i] for i in rng.permutation(len(scans))]
            size = int(rng.integers(1, len(scans) + 1))
            found.append(
                Call(
                    backend=backend,
                    scans=tuple(order[:size]),
                    cold=bool(rng.random() < 0.3),
                    busy=bool(rng.random() < 0.3),
                )
            )
    return found[:number]


def predict(call: Call, model: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Run *call*; yield the program that computed each scan, the scan's name, and the digest of its mask."""
    cache = folder.parent / "cache"
    if call.cold:
        shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "metaseg_cli", "predict", *map(str, call.scans), "--model", str(model)]
    options = ["--out", str(folder), "--backend", call.backend, "--quiet"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if call.busy else None
    try:
        subprocess.run([*command, *options], env=surroundings, check=True, capture_output=True)
    finally:
        if other is not None:
            other.kill()
            other.wait()
    for scan in json.loads((folder / "predictions.json").read_text())["scans"]:
        yield scan["backend"], scan["name"], hashlib.sha256(Path(scan["mask"]).read_bytes()).hexdigest()


def repeat(model: Path, scans: Sequence[Path], number: int, seed: int, folder: Path) -> list[str]:
    """Return a line for each scan and backend that has more than one mask."""
    masks: dict[tuple[str, str], set[str]] = defaultdict(set)
    programs: dict[str, set[str]] = defaultdict(set)
    for count, call in enumerate(calls(scans, number, seed)):
        for program, name, digest in predict(call, model, folder / str(count)):
            masks[program, name].add(digest)
            programs[call.backend].add(program)
    faults = [f"{name} by {program}: {len(found)} masks" for (program, name), found in masks.items() if len(found) > 1]
    return faults + [f"--backend {name} took {used}" for name, used in programs.items() if len(used) > 1]


def make_model(folder: Path, *, dims: int = 2) -> tuple[Path, list[Path]]:
    """Train a small network on phantoms; return its file and five scans, two of which are the same."""
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.commands.train import train
    from metaseg_cli.config import PrepareConfig
    from metaseg_cli.core.progress import Silent
    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures, write_phantom_volumes
    from tests.common import tiny_training

    settings = PhantomSettings(shape=(24, 64, 64), lesions=(2, 5), diameter_mm=(8.0, 25.0))
    if dims == 2:
        write_phantom_pictures(folder / "raw", 6, 4, settings, seed=1)
    else:
        write_phantom_volumes(folder / "raw", 5, settings, seed=1)
    prepare(PrepareConfig(raw=folder / "raw", out=folder / "prepared", workers=1), Silent())
    run = train(tiny_training(folder / "prepared", folder / "runs", epochs=3), Silent()).run
    pattern = "patient*/*_0[13].png" if dims == 2 else "imagesTr/*"
    chosen = sorted((folder / "raw").glob(pattern))[:4]
    twin = folder / f"twin{''.join(chosen[0].suffixes)}"
    shutil.copy(chosen[0], twin)
    if dims == 2:  # one of another size
        with Image.open(chosen[1]) as image:
            image.crop((3, 5, 60, 50)).save(chosen[1])
    return run / "model.safetensors", [*chosen, twin]


def main() -> int:
    """Print what differs; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dims", type=int, default=2, choices=(2, 3), help="of the phantoms")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, scans = (typed.model, typed.scans) if typed.model else make_model(folder, dims=typed.dims)
        faults = repeat(model, scans, typed.calls, typed.seed, folder)
    print("\n".join(faults) or f"{typed.calls} calls, {len(scans)} scans: the same masks")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
