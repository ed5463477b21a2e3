"""Every reader of the program with a valid file for it: scans, masks, and what metaseg writes itself."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

SHAPE = (6, 20, 24)


@dataclass(frozen=True)
class Kind:
    """*make* writes valid files into a folder and returns the one that is damaged; *read* gets that one, or *whole*."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    whole: Callable[[Path], Path] | None = None
    most_seconds: float = 10.0
    no_remedy: bool = False


def _numbers(shape: tuple[int, ...] = SHAPE, high: int = 2000, dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def _labels() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 5:9, 6:12] = 1
    return label


def _scan(path: Path) -> object:
    from metaseg_cli.core.images import read_image

    return read_image(path)


def _mask(path: Path) -> object:
    from metaseg_cli.core.images import read_mask

    return read_mask(path)


# -- pictures --------------------------------------------------------------------------------------------------------


def _picture(name: str, array: np.ndarray, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Image.fromarray(array).save(folder / name, **options)
        return folder / name

    return make


def _palette(folder: Path) -> Path:
    picture = Image.fromarray(_labels()[2], "P")
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
    picture.save(folder / "a.png")
    return folder / "a.png"


def _tiff(array: np.ndarray, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tifffile.imwrite(folder / "a.tif", array, **options)
        return folder / "a.tif"

    return make


GREY, COLOUR = _numbers((20, 24), 255, np.uint8), _numbers((20, 24, 3), 255, np.uint8)
PICTURES = {
    "png": Kind(_picture("a.png", GREY), _scan),
    "png-colour": Kind(_picture("a.png", COLOUR), _scan),
    "png-16": Kind(_picture("a.png", _numbers((20, 24), 60000, np.uint16)), _scan),
    "png-palette-mask": Kind(_palette, _mask),
    "jpeg": Kind(_picture("a.jpg", COLOUR, quality=80), _scan),
    "jpeg-progressive": Kind(_picture("a.jpg", GREY, progressive=True), _scan),
    "jpeg-mask": Kind(_picture("a.jpg", _labels()[2] * np.uint8(255)), _mask),
    "bmp": Kind(_picture("a.bmp", COLOUR), _scan),
    "gif": Kind(_picture("a.gif", GREY), _scan),
    "webp": Kind(_picture("a.webp", COLOUR, lossless=True), _scan),
    "tiff": Kind(_tiff(GREY), _scan),
    "tiff-deflate": Kind(
        _tiff(_numbers((3, 20, 24), 255, np.uint8), compression="zlib", photometric="minisblack"), _scan
    ),
    "tiff-16-colour": Kind(_tiff(_numbers((20, 24, 3), 60000, np.uint16), photometric="rgb"), _scan),
    "tiff-float-mask": Kind(_tiff(_labels()[2].astype(np.float32)), _mask),
    "tiff-stack-mask": Kind(_tiff(_labels() * np.uint8(255), photometric="minisblack"), _mask),
}


# -- volumes ---------------------------------------------------------------------------------------------------------


def _nifti(name: str, kind: Any, array: np.ndarray | None = None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data = (_numbers() if array is None else array).T
        image = kind(data, np.diag([-1.0, 1.1, 2.0, 1.0]))
        image.set_data_dtype(data.dtype)
        nibabel.save(image, folder / name)
        return folder / name

    return make


def _itk(name: str, damaged: str | None = None, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = sitk.GetImageFromArray(_numbers())
        image.SetSpacing((1.0, 1.1, 2.0))
        sitk.WriteImage(image, str(folder / name), **options)
        return folder / (damaged or name)

    return make


VOLUMES = {
    "nii": Kind(_nifti("a.nii", nibabel.Nifti1Image), _scan),
    "nii-gz": Kind(_nifti("a.nii.gz", nibabel.Nifti1Image), _scan),
    "nii-2": Kind(_nifti("a.nii", nibabel.Nifti2Image), _scan),
    "nii-mask": Kind(_nifti("a.nii", nibabel.Nifti1Image, _labels()), _mask),
    "hdr": Kind(_nifti("a.hdr", nibabel.Nifti1Pair), _scan),
    "mgz": Kind(_nifti("a.mgz", nibabel.MGHImage), _scan),
    "mgh": Kind(_nifti("a.mgh", nibabel.MGHImage), _scan),
    "nrrd": Kind(_itk("a.nrrd"), _scan),
    "nrrd-gzip": Kind(_itk("a.nrrd", useCompression=True), _scan),
    "nhdr": Kind(_itk("a.nhdr"), _scan),
    "mha": Kind(_itk("a.mha"), _scan),
    "mha-zlib": Kind(_itk("a.mha", useCompression=True), _scan),
    "mhd": Kind(_itk("a.mhd"), _scan),
}


# -- DICOM -----------------------------------------------------------------------------------------------------------


def _series(folder: Path) -> list[Path]:
    from tests.dicom_files import write_series

    return write_series(folder / "series", _numbers(high=2000, dtype=np.uint16))


def _slice(folder: Path) -> Path:
    return _series(folder)[2]


def _compressed(folder: Path) -> Path:
    from tests.dicom_files import to_jpeg2000

    path = _series(folder)[2]
    to_jpeg2000(path)
    return path


def _seg(folder: Path) -> Path:
    from metaseg_cli.core.images import write_seg

    path = folder / "seg.dcm"
    write_seg(path, [("metastasis", _labels() > 0)], _series(folder))
    return path


def _rtstruct(folder: Path) -> Path:
    from metaseg_cli.core.images import read_scan, write_rtstruct

    files = _series(folder)
    path = folder / "rt.dcm"
    write_rtstruct(path, [("GTV", _labels() > 0)], files, read_scan(files))
    return path


def _read_rtstruct(path: Path) -> object:
    from metaseg_cli.core.images import read_mask, read_scan

    return read_mask(path, read_scan(sorted((path.parent / "series").iterdir())))


def _zip(folder: Path) -> Path:
    files = _series(folder)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.name)
    return folder / "a.zip"


def _predict_inputs(path: Path) -> object:
    from metaseg_cli.core.inference.inputs import sources_of

    return sources_of((str(path),))


DICOM = {
    "dicom": Kind(_slice, _scan),
    "dicom-in-series": Kind(_slice, _scan, whole=lambda folder: folder / "series"),
    "dicom-jpeg2000": Kind(_compressed, _scan),
    "dicom-folder": Kind(_slice, _predict_inputs, whole=lambda folder: folder / "series"),
    "dicom-seg": Kind(_seg, _mask),
    "dicom-rtstruct": Kind(_rtstruct, _read_rtstruct),
    "zip": Kind(_zip, _scan),
}


# -- what metaseg, or a user, writes ---------------------------------------------------------------------------------


def _manifest(folder: Path) -> Path:
    _picture("a.png", GREY)(folder)
    _picture("b.png", GREY)(folder)
    (folder / "cases.csv").write_text("case,patient,mask,t1c\none,p1,b.png,a.png\ntwo,p2,,b.png\n")
    return folder / "cases.csv"


def _read_manifest(path: Path) -> object:
    from metaseg_cli.core.datasets import read_manifest

    return read_manifest(path, path.parent)


def _description(folder: Path) -> Path:
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir()
        _nifti(name, nibabel.Nifti1Image, _labels())(folder)
    path = folder / "dataset.json"
    path.write_text(json.dumps({"channel_names": {"0": "T1c"}, "labels": {"background": 0, "lesion": 1}}))
    return path


def _find(path: Path) -> object:
    from metaseg_cli.core.datasets import find_cases

    return find_cases(path)


def _model(folder: Path) -> Path:
    import torch

    from metaseg_cli.core.model_file import ModelCard, save_model
    from metaseg_cli.core.postprocessing import Postprocessing

    torch.manual_seed(0)
    card = ModelCard(
        name="attention-unet",
        in_channels=1,
        out_channels=1,
        dims=2,
        widths=(4, 8),
        strides=((2, 2),),
        norm="batch",
        activation="leaky-relu",
        sequences=("grey",),
        regions={"metastasis": ()},
        preprocessing={"normalisation": "slice", "oriented": False, "spacing_mm": None},
        patch=(1, 32, 32),
        postprocessing={"metastasis": Postprocessing(threshold=0.4)},
    )
    save_model(folder / "model.safetensors", card.build(), card)
    return folder / "model.safetensors"


def _load(path: Path) -> object:
    from metaseg_cli import load_model

    return load_model(path)


def _settings(folder: Path) -> Path:
    from metaseg_cli.config import TrainConfig
    from metaseg_cli.config_file import dump_yaml

    (folder / "config.yaml").write_text(dump_yaml(TrainConfig(widths=(4, 8), patch=(32,))))
    return folder / "config.yaml"


def _read_settings(path: Path) -> object:
    from metaseg_cli.config import TrainConfig
    from metaseg_cli.config_file import merge_config, read_yaml

    return merge_config(TrainConfig, read_yaml(path), {})


def _prepared(folder: Path) -> Path:
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.config import PrepareConfig
    from metaseg_cli.core.progress import Silent
    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures

    settings = PhantomSettings(shape=(2, 32, 32), lesions=(1, 2), diameter_mm=(8.0, 20.0))
    write_phantom_pictures(folder / "raw", 3, 2, settings, seed=1)
    prepare(PrepareConfig(raw=folder / "raw", out=folder / "prepared", workers=1), Silent())
    return folder / "prepared"


def _file_of_prepared(name: str, folder: Path) -> Path:
    return sorted(_prepared(folder).glob(name))[0]


def _read_prepared(path: Path) -> object:
    from metaseg_cli.core.cache import open_prepared

    prepared = open_prepared(path)
    return [(prepared.image(r), prepared.label(r), prepared.lesion_points(r)) for r in prepared.cases]


def _prepare_again(path: Path) -> object:
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.config import PrepareConfig
    from metaseg_cli.core.progress import Silent

    return prepare(PrepareConfig(raw=path.parent / "raw", out=path, workers=1), Silent())


def _checkpoint(folder: Path) -> Path:
    from metaseg_cli.commands.train import train
    from metaseg_cli.config import TrainConfig
    from metaseg_cli.core.progress import Silent

    tiny: dict[str, Any] = {
        "epochs": 1,
        "widths": (4, 8),
        "patch": (32,),
        "batch_size": 2,
        "steps_per_epoch": 1,
        "device": "cpu",
    }
    run = train(TrainConfig(data=_prepared(folder), out=folder / "runs", **tiny), Silent()).run
    shutil.move(run, folder / "run")
    (folder / "run" / "checkpoint.before.pt").unlink(missing_ok=True)
    return folder / "run" / "checkpoint.pt"


def _resume(path: Path) -> object:
    from metaseg_cli.commands.train import train
    from metaseg_cli.config import TrainConfig
    from metaseg_cli.core.progress import Silent

    return train(TrainConfig(resume=path, device="cpu", epochs=1), Silent())


def _predictions(folder: Path) -> Path:
    mask = str(folder / "a_mask.png")
    nothing = dict.fromkeys(("segmentation", "overlay", "overview", "spacing_mm"))
    empty: dict[str, list[str]] = {
        key: [] for key in ("probability", "uncertainty", "disagreement", "lesions", "notes")
    }
    tables = {"sequences": {"t1c": "a.png"}, "sum_of_diameters_mm": {"metastasis": 1.5}}
    entry = {"scan": "a.png", "name": "a", "key": "k", "mask": mask, "backend": "torch", **nothing, **empty, **tables}
    (folder / "predictions.json").write_text(json.dumps({"schema": 1, "scans": [entry], "earlier": []}))
    return folder / "predictions.json"


def _records(path: Path) -> object:
    from metaseg_cli.core.inference.finished_scans import FinishedScans

    records = FinishedScans(path.parent)
    return records.earlier("a"), records.others(set())


OURS = {
    "manifest": Kind(_manifest, _read_manifest),
    "description": Kind(_description, _find, whole=lambda folder: folder),
    "model": Kind(_model, _load, most_seconds=2.0),
    "settings": Kind(_settings, _read_settings, most_seconds=2.0, no_remedy=True),
    "prepared-json": Kind(partial(_file_of_prepared, "dataset.json"), _read_prepared, whole=lambda f: f / "prepared"),
    "prepared-shard": Kind(partial(_file_of_prepared, "shards/*.h5"), _read_prepared, whole=lambda f: f / "prepared"),
    "prepare-again": Kind(partial(_file_of_prepared, "shards/*.h5"), _prepare_again, whole=lambda f: f / "prepared"),
    "checkpoint": Kind(_checkpoint, _resume, whole=lambda folder: folder / "run"),
    "predictions": Kind(_predictions, _records, most_seconds=2.0),
}

KINDS: dict[str, Kind] = {**PICTURES, **VOLUMES, **DICOM, **OURS}
