"""From file to file: ``metaseg predict`` against ``nnUNetv2_predict``, and against MONAI's network in a plain loop.

    python tests/benchmarks/predict.py volume --nnunet VENV/bin --max-memory 2GB
    python tests/benchmarks/predict.py pictures
    python tests/benchmarks/predict.py large --max-memory 3GB

*volume*: 4 × 155 × 240 × 240 in four NIfTI files, networks of 32 … 320 channels with random weights, windows of 128³,
no mirror images; nnU-Net with one process for reading and one for writing. *pictures*: 200 PNGs of 256 × 256; MONAI's
AttentionUnet in a loop of its own: read, normalise, network, write. *large*: a volume of 512 × 512 × 300 and a
picture of 4000 × 3000, metaseg alone. Every row is a whole process: seconds, and the most memory that it and its
children had at once (proportional set size, looked at every 50 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metaseg_cli.core.model_file import ModelCard, save_model
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom

SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
MONAI_LOOP = """
import sys, time
from pathlib import Path
import numpy as np, torch
from PIL import Image
from monai.networks.nets import AttentionUnet
began = time.perf_counter()
net = AttentionUnet(2, 1, 1, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2)).eval()
out = Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
with torch.inference_mode():
    for file in sorted(Path(sys.argv[1]).glob("*.png")):
        image = np.asarray(Image.open(file), np.float32)
        image = (image - image.mean()) / image.std()
        mask = torch.sigmoid(net(torch.from_numpy(image)[None, None]))[0, 0] >= 0.5
        Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(out / file.name)
print(f"loop alone {time.perf_counter() - began:.1f} s")
"""


def model_file(
    path: Path, dims: int, sequences: tuple[str, ...], widths: tuple[int, ...], foreground: float = 0.002
) -> None:
    """Random weights that call about a share *foreground* of a head's voxels lesion; with 0 hardly any."""
    patch = (128, 128, 128) if dims == 3 else (1, 256, 256)
    card = ModelCard(
        name="attention-unet",
        in_channels=len(sequences),
        out_channels=1,
        dims=dims,
        widths=widths,
        strides=((2,) * dims,) * (len(widths) - 1),
        norm="batch",
        activation="leaky-relu",
        sequences=sequences,
        regions={"metastasis": ()},
        preprocessing={"normalisation": "case", "oriented": dims == 3, "spacing_mm": None},
        patch=patch,
    )
    torch.manual_seed(0)
    network = card.build().eval()
    sides = (96, 96, 96) if dims == 3 else (1, 256, 256)
    image = torch.from_numpy((head(sides) - 0.3) / 0.25)[(0,) if dims == 2 else ...]
    with torch.inference_mode():
        logits = network(image.expand(1, len(sequences), *image.shape))
    with torch.no_grad():
        network.heads[0].bias -= logits.quantile(1 - foreground)
    save_model(path, network, card)


def head(shape: tuple[int, int, int]) -> np.ndarray:
    """A phantom's image ``(Z, Y, X)``."""
    settings = PhantomSettings(shape=shape, spacing_mm=(1.0, 1.0, 1.0), lesions=(5, 5))
    return make_phantom(0, settings).image[0].astype(np.float32)


def write_volumes(folder: Path, shape: tuple[int, int, int], names: tuple[str, ...]) -> None:
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    image, rng = head(shape), np.random.default_rng(0)
    for name in names:
        noisy = np.where(image > image.min(), image + 0.02 * rng.normal(size=shape).astype(np.float32), image)
        sitk.WriteImage(sitk.GetImageFromArray((1000 * noisy).astype(np.int16)), str(folder / f"{name}.nii.gz"))


def nnunet_model(folder: Path, nnunet: Path) -> None:
    """A model folder with random weights, as nnU-Net would have written it."""
    code = f"""
import json, torch
from pathlib import Path
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
features = [32, 64, 128, 256, 320, 320]
architecture = {{
    "n_stages": 6, "features_per_stage": features, "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3] * 3] * 6, "strides": [[1] * 3] + [[2] * 3] * 5, "n_conv_per_stage": [2] * 6,
    "n_conv_per_stage_decoder": [2] * 5, "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {{"eps": 1e-5, "affine": True}}, "dropout_op": None, "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {{"inplace": True}},
}}
name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
imports = ["conv_op", "norm_op", "dropout_op", "nonlin"]
folder = Path({str(folder)!r})
(folder / "fold_0").mkdir(parents=True)
resampling = {{"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}}
function = "resample_data_or_seg_to_shape"
configuration = {{
    "data_identifier": "3d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [128] * 3,
    "median_image_size_in_voxels": [155, 240, 240], "spacing": [1.0] * 3,
    "normalization_schemes": ["ZScoreNormalization"] * 4, "use_mask_for_norm": [True] * 4,
    "resampling_fn_data": function, "resampling_fn_seg": function, "resampling_fn_probabilities": function,
    "resampling_fn_data_kwargs": resampling, "resampling_fn_probabilities_kwargs": resampling,
    "resampling_fn_seg_kwargs": {{**resampling, "is_seg": True}}, "batch_dice": False,
    "architecture": {{"network_class_name": name, "arch_kwargs": architecture, "_kw_requires_import": imports}},
}}
plans = {{
    "dataset_name": "Dataset902", "plans_name": "nnUNetPlans", "original_median_spacing_after_transp": [1.0] * 3,
    "original_median_shape_after_transp": [155, 240, 240], "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "configurations": {{"3d_fullres": configuration}},
    "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {{str(i): {{"mean": 0.0, "std": 1.0}} for i in range(4)}},
}}
dataset = {{
    "channel_names": {{str(i): n for i, n in enumerate({list(SEQUENCES)!r})}},
    "labels": {{"background": 0, "lesion": 1}}, "numTraining": 1, "file_ending": ".nii.gz",
}}
(folder / "plans.json").write_text(json.dumps(plans))
(folder / "dataset.json").write_text(json.dumps(dataset))
torch.manual_seed(0)
net = get_network_from_plans(name, architecture, imports, 4, 2, deep_supervision=False)
torch.save({{
    "network_weights": net.state_dict(), "trainer_name": "nnUNetTrainer",
    "init_args": {{"configuration": "3d_fullres", "fold": 0}}, "inference_allowed_mirroring_axes": (0, 1, 2),
}}, folder / "fold_0" / "checkpoint_final.pth")
"""
    declared = (
        "import torch\nl = torch.library.Library('torchvision', 'DEF')\n"
        "l.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "l.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
    )
    subprocess.run([str(nnunet / "python"), "-c", declared + code], check=True)
    (folder / "predict.py").write_text(
        declared + "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as main\n"
        "if __name__ == '__main__':\n    main()\n"
    )


def proportional(process: int) -> int:
    """Bytes of *process* and all its descendants, shared pages counted once."""
    total, waiting = 0, [process]
    while waiting:
        number = waiting.pop()
        try:
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
            threads = [int(t) for t in os.listdir(f"/proc/{number}/task") if t != str(number)]
            for thread in threads:
                children += Path(f"/proc/{number}/task/{thread}/children").read_text().split()
            waiting += map(int, children)
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            continue
    return total


def measured(command: list[str], **environment: str) -> tuple[float, float]:
    """Seconds, and GB at most."""
    began, most = time.perf_counter(), 0
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None:
        most = max(most, proportional(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{output}")
    alone = [line for line in output.splitlines() if line.startswith("loop alone")]
    print(
        f"  {Path(command[0]).name} {command[1][:40]!r}: {seconds:.1f} s, {most / 1e9:.2f} GB  {' '.join(alone)}",
        flush=True,
    )
    return seconds, most / 1e9


def metaseg(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "metaseg_cli", "predict", *arguments, "--overwrite", "--quiet"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("volume", "pictures", "large"))
    parser.add_argument("--nnunet", type=Path, help="bin folder of an environment with nnunetv2")
    parser.add_argument("--max-memory", help="one more row: metaseg held to this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="", help="further options of metaseg predict")
    parser.add_argument("--work", type=Path, default=Path("predict_benchmark"))
    arguments = parser.parse_args()
    work = arguments.work / arguments.kind
    work.mkdir(parents=True, exist_ok=True)
    options = ["--out", str(work / "out"), *arguments.options.split()]
    limited = ["--max-memory", arguments.max_memory, "--out", str(work / "limited")] if arguments.max_memory else []
    rows: dict[str, list[str]] = {}
    if arguments.kind == "volume":
        model, scans = work / "model.safetensors", work / "scans"
        if not scans.exists():
            write_volumes(scans, (155, 240, 240), SEQUENCES)
            for number, name in enumerate(SEQUENCES):
                (work / "nnunet_in").mkdir(exist_ok=True)
                os.link(scans / f"{name}.nii.gz", work / "nnunet_in" / f"case_{number:04d}.nii.gz")
        model_file(model, 3, SEQUENCES, (32, 64, 128, 256, 320, 320))
        given = [*(f"{name}={scans / name}.nii.gz" for name in SEQUENCES), "--model", str(model)]
        rows["metaseg"] = metaseg(*given, *options)
        if limited:
            rows[f"metaseg --max-memory {arguments.max_memory}"] = metaseg(*given, *options, *limited)
        if arguments.nnunet:
            folder = work / "nnunet_model"
            if not folder.exists():
                nnunet_model(folder, arguments.nnunet)
            places = ["-i", str(work / "nnunet_in"), "-o", str(work / "nnunet_out"), "-m", str(folder), "-f", "0"]
            more = ["-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
            rows["nnUNetv2_predict"] = [str(arguments.nnunet / "python"), str(folder / "predict.py"), *places, *more]
    elif arguments.kind == "pictures":
        model, scans = work / "model.safetensors", work / "scans"
        if not scans.exists():
            scans.mkdir()
            image, rng = head((200, 256, 256)), np.random.default_rng(0)
            top = image.max()
            for number, layer in enumerate(image):
                grey = np.clip(
                    255 * (layer - image.min()) / (top - image.min()) + rng.normal(0, 2, layer.shape), 0, 255
                )
                Image.fromarray(grey.astype(np.uint8)).save(scans / f"slice_{number:03d}.png")
        model_file(model, 2, ("image",), (32, 64, 128, 256, 512), 0)
        rows["metaseg"] = metaseg(str(scans), "--model", str(model), *options)
        rows["MONAI AttentionUnet in a loop"] = [sys.executable, "-c", MONAI_LOOP, str(scans), str(work / "monai")]
    else:
        write_volumes(work, (300, 512, 512), ("volume",))
        picture = head((1, 3000, 4000))[0]
        Image.fromarray((255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)).save(work / "picture.png")
        model_file(work / "volume.safetensors", 3, ("t1c",), (32, 64, 128, 256, 320), 0)
        model_file(work / "picture.safetensors", 2, ("image",), (32, 64, 128, 256, 512), 0)
        for name, ending in (("volume", "nii.gz"), ("picture", "png")):
            given = [str(work / f"{name}.{ending}"), "--model", str(work / f"{name}.safetensors")]
            rows[name] = metaseg(*given, *options, *limited)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, command in rows.items():
            found[name].append(measured(command, nnUNet_raw=".", nnUNet_preprocessed=".", nnUNet_results="."))
    print(f"\nmedians of {arguments.rounds} interleaved rounds")
    for name, each in found.items():
        seconds, memory = (statistics.median(values) for values in zip(*each, strict=True))
        print(f"{name:32} {seconds:7.1f} s  {memory:5.2f} GB")
    if arguments.kind == "volume" and limited:
        import SimpleITK as sitk

        one, other = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(next((work / which).glob("*_mask.nii.gz")))))
            for which in ("out", "limited")
        )
        print(f"{(one != other).sum()} of {(one > 0).sum()} foreground voxels differ under --max-memory")
        about = json.loads((work / "limited" / "predictions.json").read_text())
        print("notes:", about["scans"][0]["notes"])


if __name__ == "__main__":
    main()
