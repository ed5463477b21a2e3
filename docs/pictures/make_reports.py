"""Make the example reports of the documentation from phantoms, as they look on A4 paper.

Requires chromium and ghostscript: python docs/pictures/make_reports.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from metaseg_cli.commands.follow_up import follow_up
from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.images import read_image, read_mask
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.core.measurements import measure
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom
from metaseg_cli.reports.scan_report import save_report

HERE = Path(__file__).parent
SPACING = (2.0, 1.0, 1.0)  # z, y, x in mm
# Lesion → its centre (z, y, x) in mm from the middle, and its diameter (mm) at each visit.
LESIONS = {
    "A": ((10, -30, 25), (24, 16, 13)),
    "B": ((-6, 28, -30), (14, 11, 10)),
    "C": ((22, 15, 20), (6, 6, 7)),
    "D": ((0, -10, -38), (0, 0, 9)),
}
CARD = ModelCard(
    name="attention-unet",
    in_channels=1,
    out_channels=1,
    dims=3,
    widths=(32, 64),
    strides=((2, 2, 2),),
    norm="batch",
    activation="leaky-relu",
    sequences=("t1c",),
    regions={"metastasis": (1,)},
    preprocessing={},
    patch=(64, 96, 96),
)


def write_visit(folder: Path, visit: int) -> Path:
    """Write a scan and its mask as a case folder."""
    folder.mkdir()
    phantom = make_phantom(3, PhantomSettings(shape=(64, 176, 144), spacing_mm=SPACING, lesions=(0, 0)))
    image = phantom.image[0].copy()
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(image.shape, SPACING, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    mask = np.zeros(image.shape, np.uint8)
    for centre, diameters in LESIONS.values():
        distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        mask[distance < diameters[visit] / 2] = 1
    image[mask > 0] = np.percentile(image, 99.7)
    for name, array in (("p1_t1c", image.astype(np.float32)), ("p1_seg", mask)):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing(SPACING[::-1])
        sitk.WriteImage(volume, str(folder / f"{name}.nii.gz"))
    return folder


def print_pages(page: Path, name: str) -> None:
    """Print *page* on A4 and save its sheets as *name*_1.png, *name*_2.png …"""
    with tempfile.TemporaryDirectory() as folder:
        pdf = Path(folder) / "report.pdf"
        chromium = shutil.which("chromium") or sys.exit("chromium is missing")
        options = ["--headless", "--no-sandbox", "--no-pdf-header-footer", f"--print-to-pdf={pdf}"]
        subprocess.run([chromium, *options, page.resolve().as_uri()], check=True, capture_output=True)
        pages = [
            "gs",
            "-q",
            "-dBATCH",
            "-dNOPAUSE",
            "-sDEVICE=png16m",
            "-dTextAlphaBits=4",
            "-dGraphicsAlphaBits=4",
            "-r80",
        ]
        subprocess.run([*pages, f"-sOutputFile={HERE / name}_%d.png", str(pdf)], check=True)


def write_single(folder: Path, visit: Path) -> Path:
    """Write the report of one visit, as ``predict`` does of what a model found."""
    scan = read_image(visit / "p1_t1c.nii.gz")
    spacing = scan.spacing_mm
    mask = read_mask(visit / "p1_seg.nii.gz").array > 0
    numbers, lesions = find_lesions(mask[0], spacing)
    prediction = Prediction(
        mask=mask[0].astype(np.uint8),
        masks=mask,
        probabilities=mask.astype(np.float32),
        lesions={"metastasis": lesions},
        measurements={"metastasis": [measure(numbers == lesion.number, spacing) for lesion in lesions]},
        index_region="metastasis",
        source=scan,
    )
    save_report(folder / "single.html", prediction, CARD)
    return folder / "single.html"


def main() -> None:
    """Make the reports of one and of three visits."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        visits = tuple(str(write_visit(folder / f"visit{v + 1}", v)) for v in range(3))
        follow_up(FollowUpConfig(visits=visits, out=folder / "out"), Silent())
        print_pages(folder / "out" / "report.html", "report_three_visits")
        print_pages(write_single(folder, Path(visits[0])), "report_one_visit")
        if len(sys.argv) > 1:
            shutil.copytree(folder / "out", sys.argv[1], dirs_exist_ok=True)


if __name__ == "__main__":
    main()
