"""The calls that are disturbed: small real ones of every command, and the inputs that they share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
HOOK = Path(__file__).resolve().parent / "hook"
_TINY = (
    *("--widths", "4,8", "--patch", "32", "--batch-size", "2", "--steps-per-epoch", "2", "--warmup-steps", "1"),
    *("--precision", "fp32", "--memory-format", "contiguous", "--device", "cpu"),
)
PATIENCE = 240.0
_RIGHTS = "-dac_override,-dac_read_search"
WITHOUT_RIGHTS = ("setpriv", f"--bounding-set={_RIGHTS}", f"--inh-caps={_RIGHTS}")


@dataclass(frozen=True)
class Call:
    """``arguments`` in a folder of its own, with inputs under *inputs*; results lie in the folder ``results``."""

    name: str
    arguments: Callable[[Path], Sequence[object]]
    results: str
    last: str  # the file that stands last: with it the call is done
    again: Callable[[Path], Sequence[object] | None] = lambda folder: None  # other arguments for the call after a stop


def _resume(folder: Path) -> Sequence[object] | None:
    """``train --resume`` of a run that has a checkpoint."""
    runs = sorted({path.parent for path in (folder / "runs").glob("*/checkpoint*.pt")})
    return ("train", "--resume", runs[-1].relative_to(folder)) if runs else None


CALLS = {
    call.name: call
    for call in (
        Call("prepare", lambda i: ("prepare", i / "raw", "--folds", 2, "--workers", 1), "prepared", "report.html"),
        Call(
            "prepare-workers", lambda i: ("prepare", i / "vol", "--folds", 2, "--workers", 2), "prepared", "report.html"
        ),
        Call(
            "train",
            lambda i: ("train", "--data", i / "prepared", "--epochs", 3, *_TINY),
            "runs",
            "*/result.json",
            again=_resume,
        ),
        Call(
            "train-all",
            lambda i: ("train", "--data", i / "prepared", "--fold", "all", "--epochs", 1, *_TINY),
            "runs",
            "*/result.json",
        ),
        Call(
            "predict",
            lambda i: (  # a backend by name: auto takes the one that is faster at the moment
                *("predict", i / "scans", "--model", i / "model_vol.safetensors"),
                *("--probabilities", "--backend", "torch"),
            ),
            "predictions",
            "predictions.json",
        ),
        Call(
            "predict-pictures",
            lambda i: ("predict", i / "raw" / "test", "--model", i / "model.safetensors", "--backend", "torch"),
            "predictions",
            "predictions.json",
        ),
        Call(
            "evaluate-model",
            lambda i: (
                *("evaluate", i / "model.safetensors", "--data", i / "prepared"),
                *("--split", "test", "--out", "evaluation"),
            ),
            "evaluation",
            "metrics.json",
        ),
        Call(
            "evaluate-folders",
            lambda i: ("evaluate", "--predictions", i / "found", "--references", i / "vol" / "labelsTr"),
            "evaluation",
            "metrics.json",
        ),
        Call(
            "follow-up",
            lambda i: ("follow-up", *(i / "vol" / "labelsTr" / f"phantom_00{n}.nii.gz" for n in (1, 2, 3))),
            "follow_up",
            "follow_up.json",
        ),
    )
}
MORE = {
    call.name: call
    for call in (
        Call("demo", lambda i: ("demo", "--minutes", 0.05), "demo", "predictions/predictions.json"),
        Call("export", lambda i: ("export", i / "model.safetensors", "--out", "exported/m.onnx"), "exported", "m.onnx"),
    )
}


def environment(temporary: Path, **more: str) -> dict[str, str]:
    """One thread, so that sums come out the same; a folder for temporary files that can be looked into."""
    temporary.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("METASEG_")}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join([str(HOOK), str(PACKAGE)]),
        **more,
    }


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "metaseg_cli", *map(str, arguments)]


def run(
    arguments: Sequence[object], folder: Path, env: dict[str, str], *, as_root: bool = True
) -> subprocess.CompletedProcess[str]:
    """The call in *folder*, to its end; without *as_root* permissions bind root like anybody."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [*(() if as_root else WITHOUT_RIGHTS), *command(*arguments)],
        cwd=folder,
        env=env,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=PATIENCE,
        check=False,
    )


def make_inputs(folder: Path, *, model_of_volumes: bool = True) -> Path:
    """Phantoms, prepared folders and models under *folder*: half a minute."""
    import shutil

    import numpy as np
    import SimpleITK as sitk

    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures, write_phantom_volumes

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    pictures = PhantomSettings(shape=(2, 64, 64), lesions=(2, 5), diameter_mm=(8.0, 25.0))
    write_phantom_pictures(folder / "raw" / "train", 4, 2, pictures, seed=1)
    write_phantom_pictures(folder / "raw" / "test", 2, 2, pictures, seed=1, first=5)
    write_phantom_volumes(folder / "vol", 5, PhantomSettings(shape=(8, 32, 32), spacing_mm=(4.0, 4.0, 4.0)), seed=2)
    (folder / "scans").mkdir()
    (folder / "found").mkdir()
    for path in sorted((folder / "vol" / "imagesTr").iterdir())[:4]:
        shutil.copy(path, folder / "scans")
        # Of a format that ITK decodes, in a process of its own; and with a header and its voxels in two files.
        name = path.name.removesuffix(".nii.gz")
        for suffix in (".nrrd", ".mhd"):
            sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / "scans" / f"{name}_as{suffix[1:]}{suffix}"))
    for path in sorted((folder / "vol" / "labelsTr").iterdir()):
        mask = sitk.ReadImage(str(path))
        moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(mask), 1, axis=2))
        moved.CopyInformation(mask)
        sitk.WriteImage(moved, str(folder / "found" / path.name))
    env = environment(folder / "tmp")
    kinds = [("raw", "prepared", "model"), ("vol", "prepared_vol", "model_vol")]
    for raw, prepared, model in kinds[: 1 + model_of_volumes]:
        _must(run(("prepare", raw, "--out", prepared, "--folds", 2), folder, env))
        _must(run(("train", "--data", prepared, "--epochs", 1, "--out", f"runs_{raw}", *_TINY), folder, env))
        trained = next((folder / f"runs_{raw}").glob("*/model.safetensors"))
        shutil.copy(trained, folder / f"{model}.safetensors")
    return folder


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError(done.stderr)
