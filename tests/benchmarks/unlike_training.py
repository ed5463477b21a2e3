"""How often a scan is said to be unlike the training data: on held-out patients, and on what a model was not made for.

    METASEG_TEST_DATA=DIR python tests/benchmarks/unlike_training.py [--repeats 10]

No network is trained: statistics are made of some patients as ``metaseg train`` makes them, and the other patients, and
scans of other kinds, are compared as ``metaseg predict`` does. Real images: TCGA-LGG slices as stacks (three sequences,
many scanners, 1986 to 2008), hippocampus crops, single heads. From the label maps of 20 heads, T1 with and without
contrast agent, T2, FLAIR and CT are rendered with tissues that vary from head to head.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.descriptors import describe
from metaseg_cli.core.images import Volume, read_scan
from metaseg_cli.core.inference.unlike_training import described, differences
from metaseg_cli.core.input_statistics import CaseInput, InputStatistics, input_statistics
from metaseg_cli.core.preprocessing import GridMapping, Preprocessing, preprocess
from tests.common import small_card

VOLUMES = Preprocessing(normalisation="case", oriented=True)
PICTURES = Preprocessing(normalisation="slice")
LGG = ("t1n", "t2f", "t1c")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One patient's scan, ready for a network."""

    patient: str
    volume: Volume
    image: NDArray[np.float32]
    mapping: GridMapping
    rows: dict[tuple[str, ...], NDArray[np.float64]] = field(default_factory=dict)  # that were computed


def scan(volume: Volume, patient: str, settings: Preprocessing) -> Scan:
    image, mapping = preprocess(volume, settings)
    return Scan(patient=patient, volume=volume, image=image, mapping=mapping)


def as_volume(array: NDArray[np.generic], spacing: tuple[float, float, float] | None, name: str) -> Volume:
    return Volume(array=array, spacing_mm=spacing, source=Path(name))


# -- real images -----------------------------------------------------------------------------------------------------


def lgg(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield patients with three different sequences, ``(3, Z, Y, X)``."""
    for patient in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = [f for f in patient.glob("*.tif") if not f.stem.endswith("_mask")]
        files.sort(key=lambda f: int(re.findall(r"\d+", f.stem)[-1]))
        stack = np.concatenate([read_scan([file]).array for file in files], axis=1)
        if not any((stack[i] == stack[j]).all() for i, j in ((0, 1), (1, 2), (0, 2))):
            yield patient.name, stack


def singles(data: Path) -> dict[str, list[Scan]]:
    """Return scans of other kinds than any training set, as volumes."""
    cases = sorted((data / "brats2015").glob("*_1"))
    named = {
        "BraTS t1c, no skull": [each / "T1c_subtrMeanDivStd.nii.gz" for each in cases],
        "BraTS t2f, no skull": [each / "Flair_subtrMeanDivStd.nii.gz" for each in cases],
        "t1c of 6.5 mm": sorted((data / "brain_nrrd").glob("*image.nrrd")),
        "T1, 32 slices": [data / "dicom_t1"],
        "CT, abdomen": [data / "dicom_seg" / "ct-3slice"],
        "hippocampus": sorted((data / "hippocampus" / "imagesTr").glob("[!.]*.nii.gz")),
    }
    return {name: [scan(read_scan([f]), f.name, VOLUMES) for f in files] for name, files in named.items()}


# -- heads rendered from label maps ----------------------------------------------------------------------------------

# Brightness of air, white, cortex, deep grey, fluid, muscle, fat, bone, marrow, skin, venous blood, mucosa.
TISSUES = {
    "t1n": (0.02, 0.85, 0.60, 0.68, 0.22, 0.50, 1.30, 0.08, 0.90, 0.80, 0.45, 0.45),
    "t1c": (0.02, 0.86, 0.62, 0.70, 0.22, 0.62, 1.30, 0.08, 0.90, 0.85, 1.40, 1.10),
    "t2w": (0.02, 0.45, 0.62, 0.52, 1.40, 0.25, 0.90, 0.05, 0.50, 0.45, 0.30, 0.95),
    "t2f": (0.02, 0.62, 0.82, 0.74, 0.12, 0.35, 0.95, 0.05, 0.50, 0.50, 0.35, 0.90),
    "CT": (-1000.0, 30.0, 38.0, 36.0, 8.0, 55.0, -90.0, 1200.0, 450.0, 20.0, 48.0, 40.0),
}
_LABELS = {1: (2, 41, 7, 46, 16, 28, 60, 85, 512), 2: (3, 42, 8, 47), 4: (4, 5, 43, 44, 14, 15, 24, 72, 506)}
_LABELS |= {5: (507, 508, 530), 7: (515,), 8: (516,), 9: (511,), 10: (30, 62, 502, 514), 11: (509, 136, 137, 163, 164)}


def tissue_map(path: Path) -> NDArray[np.uint8]:
    """Return a row of ``TISSUES`` for each voxel of a head at 2 mm, ``(Z, Y, X)`` from feet to head."""
    volume = read_scan([path])
    table = np.full(1024, 3, np.uint8)  # what is not named is deep grey matter
    table[0] = 0
    for tissue, labels in _LABELS.items():
        table[list(labels)] = tissue
    from metaseg_cli.core.images import reorient, to_canonical

    straight = reorient(volume, to_canonical(volume)).array[0]
    return table[straight[::2, ::2, ::2].astype(int)]


def render(tissues: NDArray[np.uint8], kind: str, rng: np.random.Generator) -> Volume:
    values = np.array(TISSUES[kind])
    scale = 1.0 if kind == "CT" else 0.08
    values = (
        values + rng.normal(0, 3, len(values)) if kind == "CT" else values * np.exp(rng.normal(0, scale, len(values)))
    )
    image = values[tissues]
    fat = ndimage.gaussian_filter(rng.standard_normal(tissues.shape), 4)
    image = np.where((tissues == 5) & (fat > np.median(fat)), values[6], image)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.6))
    if kind != "CT":
        bias = ndimage.zoom(rng.standard_normal((4, 4, 4)), np.array(tissues.shape) / 4, order=1)
        image = image * np.exp(rng.uniform(0.05, 0.2) * bias)
    noise = rng.standard_normal(image.shape) * (5.0 if kind == "CT" else rng.uniform(0.01, 0.05))
    return as_volume((image + noise)[None].astype(np.float32), (2.0, 2.0, 2.0), "rendered.nii.gz")


def rendered(folder: Path) -> dict[str, list[Scan]]:
    """Return each kind of each head, and its neck."""
    found: dict[str, list[Scan]] = {kind: [] for kind in (*TISSUES, "t1c of the neck")}
    for number, path in enumerate(sorted(folder.glob("head_*.nii.gz"))):
        tissues = tissue_map(path)
        brain = np.flatnonzero(np.isin(tissues, (1, 2, 3)).sum(axis=(1, 2)) > 200)
        whole = tissues[max(0, brain[0] - 5) :]
        for kind in TISSUES:
            found[kind].append(scan(render(whole, kind, np.random.default_rng([number, 1])), path.name, VOLUMES))
        neck = tissues[: max(16, brain[0] + 5)]
        found["t1c of the neck"].append(
            scan(render(neck, "t1c", np.random.default_rng([number, 2])), path.name, VOLUMES)
        )
    return found


# -- rates -----------------------------------------------------------------------------------------------------------


def case_input(each: Scan, sequences: tuple[str, ...], *, volumes: bool) -> CaseInput:
    _, y, x = each.mapping.shape
    return CaseInput(
        patient=each.patient,
        voxel_mm=each.mapping.cropped_spacing_mm if volumes else None,
        head_mm=each.mapping.extent_mm if volumes else None,
        picture_px=None if volumes else (1.0, float(y), float(x)),
        rows=describe(each.image, sequences, sequences, each_slice=not volumes),
    )


def said(statistics: InputStatistics | None, each: Scan, sequences: tuple[str, ...]) -> tuple[bool, bool]:
    """Return whether *each* is said to be unlike the training data, and whether because of its intensities."""
    if sequences not in each.rows:
        every = np.ones(len(sequences), bool)
        card = replace(small_card(), sequences=sequences)
        each.rows[sequences] = described(card, each.image, every, each.mapping)
    card = replace(small_card(), sequences=sequences, inputs=statistics)
    notes = differences(card, each.volume, each.mapping, each.rows[sequences])
    geometry = ("voxels", "mm high", "mm long", "mm wide", "pixels", "it is a")
    return bool(notes), any(not any(word in note for word in geometry) for note in notes)


def single_slices(each: Scan) -> list[Scan]:
    """Return every third slice of a stack as a picture."""
    return [replace(each, image=each.image[:, z : z + 1], rows={}) for z in range(0, each.image.shape[1], 3)]


def swapped(scans: list[Scan], order: tuple[int, ...]) -> list[Scan]:
    return [replace(each, image=each.image[list(order)], rows={}) for each in scans]


def channel(scans: list[Scan], number: int) -> list[Scan]:
    return swapped(scans, (number,))


def measure(
    name: str, like: list[Scan], unlike: dict[str, list[Scan]], sequences: tuple[str, ...], train: int, repeats: int
) -> None:
    """Print the rates for *train* patients drawn *repeats* times."""
    volumes = like[0].mapping.reorientation is not None
    rows = [case_input(each, sequences, volumes=volumes) for each in like]
    parts: Callable[[Scan], list[Scan]] = (lambda each: [each]) if volumes else single_slices
    unlike = {kind: [p for each in scans for p in parts(each)] for kind, scans in unlike.items()}
    alike = [parts(each) for each in like]
    known = {each.patient for each in like}
    hits: dict[str, list[tuple[bool, bool]]] = {"held-out patients": [], **{kind: [] for kind in unlike}}
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(len(like))
        statistics = input_statistics([rows[i] for i in order[:train]], sequences)
        held_out = {like[i].patient for i in order[train:]}
        hits["held-out patients"] += [said(statistics, p, sequences) for i in order[train:] for p in alike[i]]
        for kind, scans in unlike.items():
            hits[kind] += [
                said(statistics, p, sequences) for p in scans if p.patient in held_out or p.patient not in known
            ]
    print(f"\n{name}: {train} patients\n{'':34}   scans   said   by intensities")
    for kind, values in hits.items():
        every, intensities = 100 * np.mean(values, axis=0)
        print(f"{kind:34} {len(values):7d} {every:4.0f} % {intensities:13.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    data = Path(os.environ["METASEG_TEST_DATA"])
    single = singles(data)
    heads = {f"rendered {kind}": scans for kind, scans in rendered(data / "head_maps").items()}
    hippocampus = {"hippocampus": single.pop("hippocampus")}
    others = single | {kind: scans for kind, scans in heads.items() if kind != "rendered t1c"} | hippocampus
    measure("Rendered t1c", heads["rendered t1c"], others, ("t1c",), 14, repeats)
    measure("Hippocampus", hippocampus["hippocampus"], single | heads, ("t1n",), 30, repeats)
    stacks = list(lgg(data / "lgg"))
    volumes = [scan(as_volume(a[:, ::-1], (5.0, 0.9, 0.9), "a.nii.gz"), p, VOLUMES) for p, a in stacks]
    pictures = [scan(as_volume(a, None, "a.tif"), p, PICTURES) for p, a in stacks]
    for number, sequence in enumerate(LGG):
        others = {f"LGG {LGG[i]}": channel(volumes, i) for i in range(3) if i != number}
        for train in (10, 22):
            measure(f"LGG {sequence}", channel(volumes, number), others | single | heads, (sequence,), train, repeats)
    orders = {" ".join(LGG[i] for i in order): order for order in list(permutations(range(3)))[1:]}
    orders["t2f three times"] = (1, 1, 1)
    for what, scans in (("stacks", volumes), ("pictures", pictures)):
        unlike = {f"given as {kind}": swapped(scans, order) for kind, order in orders.items()}
        for train in (10, 22):
            measure(f"LGG {what} of {' '.join(LGG)}", scans, unlike, LGG, train, repeats)
    others = {LGG[i]: channel(pictures, i) for i in (0, 2)}
    measure("LGG t2f pictures", channel(pictures, 1), others, ("t2f",), 22, repeats)


if __name__ == "__main__":
    main()
