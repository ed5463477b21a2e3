"""Train briefly on phantoms, then use the model from Python.

python examples/predict_from_python.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import metaseg_cli
from metaseg_cli.commands.prepare import prepare
from metaseg_cli.commands.train import train
from metaseg_cli.config import PrepareConfig, TrainConfig
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures


def main(folder: Path) -> None:
    write_phantom_pictures(folder / "raw", 4, 4, PhantomSettings(shape=(4, 96, 96)), seed=1)
    prepare(PrepareConfig(raw=folder / "raw", out=folder / "prepared", workers=1), Silent())
    run = train(
        TrainConfig(data=folder / "prepared", out=folder / "runs", epochs=2, widths=(8, 16, 32), patch=(64,)), Silent()
    )

    model = metaseg_cli.load_model(run.model)
    scan = sorted((folder / "raw").glob("*/*_02.png"))[0]
    prediction = model.predict(scan)
    print(f"{scan.name}: mask {prediction.mask.shape}, {len(prediction.lesions['metastasis'])} lesion(s)")
    for lesion in prediction.lesions["metastasis"]:
        print(f"  lesion {lesion.number}: {lesion.voxels} voxels, confidence {lesion.confidence:.2f}")

    from_array = model.predict(np.random.default_rng(0).normal(size=(1, 96, 96)))  # (C, Y, X)
    print(f"an array: probabilities {from_array.probabilities.shape}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="metaseg-")))
