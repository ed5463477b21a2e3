"""nnU-Net v2's part of ``equal_budget.py``, run by the Python of an environment that has nnunetv2.

Its own planning, preprocessing, network, data loader, augmentation, loss and optimiser; the poly learning rate follows
the clock instead of the epochs. The last weights predict with mirroring, as nnU-Net does by default. Mask and
probability of each test patient go into a ``.npz``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# There is no CPU build of torchvision; it imports once its operators are declared.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

DATASET = "Dataset901_Budget"


def make_raw(kind: str, work: Path, raw: Path) -> dict[str, list[str]]:
    """nnU-Net's raw folder from that of the benchmark; returns the cases to train and to choose with."""
    for folder in ("imagesTr", "labelsTr"):
        (raw / DATASET / folder).mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    if kind == "slices":
        for part, cases in splits.items():
            for file in sorted((work / "raw" / part).rglob("*.png")):
                if file.stem.endswith("_mask"):
                    continue
                cases.append(file.stem)
                channels = np.asarray(Image.open(file))
                for c in range(3):
                    Image.fromarray(channels[..., c]).save(raw / DATASET / "imagesTr" / f"{file.stem}_{c:04d}.png")
                mask = np.asarray(Image.open(file.with_name(f"{file.stem}_mask.png"))) >= 128
                Image.fromarray(mask.astype(np.uint8)).save(raw / DATASET / "labelsTr" / f"{file.stem}.png")
        names, ending = ["pre", "flair", "post"], ".png"
    else:
        import SimpleITK as sitk

        for line in (work / "raw" / "cases.csv").read_text().splitlines()[1:]:
            case, _, truth, image, part = line.split(",")
            if part not in splits:
                continue
            splits[part].append(case)
            sitk.WriteImage(sitk.ReadImage(image), raw / DATASET / "imagesTr" / f"{case}_0000.nii.gz")
            sitk.WriteImage(
                sitk.Cast(sitk.ReadImage(truth) > 0, sitk.sitkUInt8), raw / DATASET / "labelsTr" / f"{case}.nii.gz"
            )
        names, ending = ["MRI"], ".nii.gz"
    description = {
        "channel_names": {str(i): name for i, name in enumerate(names)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": sum(map(len, splits.values())),
        "file_ending": ending,
    }
    (raw / DATASET / "dataset.json").write_text(json.dumps(description))
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("slices", "volumes"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    home = (arguments.work / "nnunet").resolve()
    folders = {name: home / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    os.environ.update({"nnUNet_compile": "f"})
    configuration = "2d" if arguments.kind == "slices" else "3d_fullres"
    preprocessed = folders["nnUNet_preprocessed"] / DATASET
    if not (preprocessed / "splits_final.json").exists():
        splits = make_raw(arguments.kind, arguments.work, folders["nnUNet_raw"])
        planner = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
        subprocess.run([str(planner), "-d", "901", "-c", configuration, "-np", "2", "-npfp", "2"], check=True)
        (preprocessed / "splits_final.json").write_text(json.dumps([splits]))

    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    random.seed(arguments.seed)
    np.random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    if arguments.kind == "slices":
        plans["configurations"]["2d"]["batch_size"] = 16
    description = json.loads((preprocessed / "dataset.json").read_text())
    began = time.monotonic()
    plans["continue_training"] = False  # as its command line passes it
    trainer = nnUNetTrainer(plans, configuration, 0, description, torch.device("cpu"))
    trainer.on_train_start()
    assert isinstance(trainer.lr_scheduler, PolyLRScheduler)
    budget = arguments.minutes * 60
    steps = 0
    trainer.network.train()
    while (elapsed := time.monotonic() - began) < budget:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - elapsed / budget) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        if steps % 50 == 0:
            print(f"nnU-Net step {steps}, {elapsed:.0f} s, loss {float(loss):.3f}", flush=True)
    print(f"nnU-Net: {steps} steps", flush=True)
    predict(trainer, arguments)
    for child in multiprocessing.active_children():  # the augmenters would be waited for
        child.kill()
    os._exit(0)


def predict(trainer: object, arguments: argparse.Namespace) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=True,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        trainer.__class__.__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.list_of_parameters = [trainer.network.state_dict()]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case, images in test_images(arguments.kind, arguments.work / "raw").items():
        masks, probabilities = [], []
        for image in images:
            if arguments.kind == "slices":
                volume = np.moveaxis(np.asarray(Image.open(image)), -1, 0)[:, None].astype(np.float32)
                properties = {"spacing": (999, 1, 1)}
            else:
                volume, properties = SimpleITKIO().read_images([str(image)])
            mask, probability = predictor.predict_single_npy_array(
                volume, properties, save_or_return_probabilities=True
            )
            masks.append(np.asarray(mask).reshape(volume.shape[1:]) > 0)
            probabilities.append(np.asarray(probability)[1].reshape(volume.shape[1:]).astype(np.float16))
        np.savez_compressed(
            arguments.out / f"{case}.npz", nnunet=np.concatenate(masks), probability=np.concatenate(probabilities)
        )


def test_images(kind: str, raw: Path) -> dict[str, list[Path]]:
    """The images of each test patient, slices in their order."""
    if kind == "volumes":
        rows = [line.split(",") for line in (raw / "cases.csv").read_text().splitlines()[1:]]
        return {row[0]: [Path(row[3])] for row in rows if row[4] == "test"}
    found = {}
    for patient in sorted((raw / "test").iterdir()):
        files = [file for file in patient.glob("*.png") if not file.stem.endswith("_mask")]
        found[patient.name] = sorted(files, key=lambda f: int(f.stem.rpartition("_")[2]))
    return found


if __name__ == "__main__":
    main()
