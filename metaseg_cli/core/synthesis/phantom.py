"""Synthetic brains with metastases, for the demo, for tests, and to learn from before real data.

Not anatomy, but its difficulties: bright vessels, choroid plexus and sinuses that look like small metastases in one
slice, ring enhancement with dark cores, oedema, a bias field, partial volumes and Rician noise. Plain thresholding
finds the vessels; shape and surroundings tell a lesion.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]

# Semi-axes of the brain in mm: z, y, x.
_BRAIN_MM = (62.0, 84.0, 67.0)


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """What a phantom is like. *shape* is ``(Z, Y, X)``; Z = 1 is one slice; spacing None fits the head to it."""

    shape: tuple[int, int, int] = (8, 160, 160)
    spacing_mm: tuple[float, float, float] | None = None
    slice_gap_mm: float = 5.0
    lesions: tuple[int, int] = (0, 8)
    diameter_mm: tuple[float, float] = (2.0, 25.0)
    ring_share: float = 0.5  # of lesions above 8 mm
    oedema_share: float = 0.5  # of lesions above 5 mm
    vessels: int = 26
    noise: float = 0.025
    bias: float = 0.18
    sequences: tuple[str, ...] = ("t1c",)

    @property
    def grid_mm(self) -> tuple[float, float, float]:
        """Spacing (z, y, x) in mm."""
        if self.spacing_mm is not None:
            return self.spacing_mm
        in_plane = 2 * 1.32 * max(_BRAIN_MM[1] / self.shape[1], _BRAIN_MM[2] / self.shape[2])
        return (self.slice_gap_mm, in_plane, in_plane)


@dataclass(frozen=True, kw_only=True)
class PhantomLesion:
    """One metastasis as it was put in; *centre_mm* from the middle of the volume."""

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    ring: bool
    oedema: bool


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """*image* ``(C, Z, Y, X)`` float32, about 0 … 1.2; *label* ``(Z, Y, X)``, 1 inside a metastasis (core included)."""

    image: Array
    label: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    lesions: tuple[PhantomLesion, ...]


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A head while it is drawn: ``t1c``, ``t2f`` and ``label`` ``(Z, Y, X)`` are changed in place.

    ``at`` are coordinates in mm from the middle; ``radius`` is the distance from it, 1 at the surface of the brain.
    """

    at: tuple[Array, Array, Array]
    spacing: tuple[float, float, float]
    radius: Array
    t1c: Array
    t2f: Array
    label: NDArray[np.uint8]


def make_phantom(seed: int, settings: PhantomSettings | None = None) -> Phantom:
    """Make one patient's volume; the same *seed* and *settings* give the same patient."""
    settings = settings or PhantomSettings()
    rng = np.random.default_rng(seed)
    spacing = settings.grid_mm
    z, y, x = _coordinates(settings.shape, spacing)
    # Where in the head the slices lie: mostly through the cerebrum.
    z = z + np.float32(rng.uniform(-12, 28) if settings.shape[0] * spacing[0] < 90 else 0)
    a, b, c = (s * rng.uniform(0.94, 1.05) for s in _BRAIN_MM)
    warp = 0.016 * _noise(rng, settings.shape, spacing, 34)
    radius = np.sqrt((z / a) ** 2 + (y / b) ** 2 + (x / c) ** 2) + warp
    folds = _noise(rng, settings.shape, spacing, 9.0)
    t1c, t2f = _tissue(rng, radius, folds, (z, y, x))
    head = _Head(
        at=(z, y, x), spacing=spacing, radius=radius, t1c=t1c, t2f=t2f, label=np.zeros(settings.shape, np.uint8)
    )
    _vessels(rng, settings, head)
    lesions = _metastases(rng, settings, head)
    images = []
    for name in settings.sequences:
        image = {"t1c": t1c, "t2f": t2f}[name]
        image = ndimage.gaussian_filter(image, [0.35 if settings.shape[0] > 1 and spacing[0] < 2 else 0, 0.55, 0.55])
        image *= np.exp(settings.bias * _noise(rng, settings.shape, spacing, 60))
        noise = settings.noise * rng.standard_normal((2, *settings.shape), dtype=np.float32)
        images.append(np.sqrt((image + noise[0]) ** 2 + noise[1] ** 2))
    return Phantom(image=np.stack(images).astype(np.float32), label=head.label, spacing_mm=spacing, lesions=lesions)


def _coordinates(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Array, Array, Array]:
    axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    return z, y, x


def _noise(rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], scale_mm: float) -> Array:
    """Return smooth noise of unit deviation with bumps about *scale_mm* wide."""
    # Drawn on a grid as coarse as the bumps allow, then interpolated: twenty times quicker than filtering white noise.
    step = [max(1.0, 0.5 * scale_mm / s) for s in spacing]
    coarse = rng.standard_normal([int(np.ceil(n / f)) + 4 for n, f in zip(shape, step, strict=True)])
    smooth = ndimage.gaussian_filter(coarse, 0.8)
    values = smooth
    for axis, (n, f) in enumerate(zip(shape, step, strict=True)):
        values = _interpolated(values, np.arange(n) / f + 1.5, axis)
    return ((values - values.mean()) / (values.std() + 1e-6)).astype(np.float32)


def _interpolated(values: NDArray[np.float64], at: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return *values* between the points of one *axis*, linearly. Axis by axis: a tenth of the time of all at once."""
    before = at.astype(np.intp)
    fraction = (at - before).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    below, above = values.take(before, axis), values.take(before + 1, axis)
    result: NDArray[np.float64] = below + fraction * (above - below)
    return result


def _tissue(
    rng: np.random.Generator, radius: Array, folds: Array, at: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """Return a head without vessels and lesions: T1 after contrast, and FLAIR."""
    z, y, x = at
    t1c = np.full(radius.shape, 0.02, np.float32)
    t2f = np.full(radius.shape, 0.02, np.float32)

    def paint(where: NDArray[np.bool_], in_t1c: float, in_t2f: float) -> None:
        t1c[where], t2f[where] = in_t1c, in_t2f

    paint(radius < 1.24, 0.75, 0.55)  # scalp
    paint(radius < 1.165, 0.12, 0.08)  # skull
    paint(radius < 1.10, 0.30, 0.16)  # marrow and inner table
    paint(radius < 1.065, 0.14, 0.10)  # cerebrospinal fluid
    # The cortex follows folds that reach deeper the nearer they are to the surface.
    depth = 1.0 - radius
    reach = np.clip(1.15 - 3.4 * depth, 0.0, 1.0)
    sulcus = np.abs(folds) < 0.20 * reach
    cortex = np.abs(folds) < 0.20 * reach + 0.42 * np.clip(1.3 - 2.9 * depth, 0.0, 1.0)
    paint(radius < 1.0, 0.60, 0.38)  # white matter
    paint(((depth < 0.045) | cortex) & (radius < 1.0), 0.43, 0.50)  # grey matter
    paint(sulcus & (radius < 1.0), 0.19, 0.12)
    midline = np.abs(x + 0.6 * folds) < 1.1
    paint(midline & (radius < 1.0) & (radius > 0.42), 0.30, 0.20)  # interhemispheric fissure
    falx = np.abs(x + 0.3 * folds) < 0.55
    paint(falx & (radius < 1.0) & (radius > 0.62), 0.68, 0.2)
    for side in (-1, 1):
        # Lateral ventricles, with choroid plexus: bright, and not a metastasis.
        size = rng.uniform(0.85, 1.25)
        vy, vx = y + 4, np.abs(x) - 9 - 0.12 * np.abs(y)
        ventricle = ((z - 8) / 17) ** 2 + (vy / 33) ** 2 + (vx / (6.5 * size)) ** 2 < 1
        ventricle &= side * x > 0.8
        paint(ventricle, 0.13, 0.08)
        cy = y - rng.uniform(6, 16)
        plexus = ((z - 6) / 9) ** 2 + (cy / rng.uniform(4, 8)) ** 2 + ((x - side * 14) / rng.uniform(1.5, 2.6)) ** 2 < 1
        paint(plexus & ventricle, rng.uniform(0.75, 1.0), 0.35)
        nucleus = ((z - 2) / 14) ** 2 + ((y + 6) / 15) ** 2 + ((x - side * 22) / 7) ** 2 < 1
        paint(nucleus & ~ventricle, 0.49, 0.46)
    # Superior sagittal sinus and enhancing dura.
    for where in (-1, 1):
        sinus = ((y - where * 86) / 5) ** 2 + (x / 3.2) ** 2 < 1
        paint(sinus & (radius < 1.12), rng.uniform(0.85, 1.05), 0.15)
    paint((np.abs(radius - 1.075) < 0.008) & (folds > 0.2), 0.6, 0.15)
    t1c += 0.015 * folds
    return t1c, t2f


def _vessels(rng: np.random.Generator, settings: PhantomSettings, head: _Head) -> None:
    """Draw enhancing vessels as curved tubes through the volume; in cross-section they are small bright discs."""
    z, spacing, radius, t1c = head.at[0], head.spacing, head.radius, head.t1c
    low, high = float(z.min()) - 10, float(z.max()) + 10
    points: list[tuple[float, float, float, float, float]] = []
    for _ in range(settings.vessels):
        angle, distance = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0.05, 0.95))
        place = np.array(
            [rng.uniform(low, high), distance * _BRAIN_MM[1] * np.sin(angle), distance * _BRAIN_MM[2] * np.cos(angle)]
        )
        course = rng.normal(size=3) * [rng.choice([0.4, 2.5]), 1, 1]
        thickness, bright = rng.uniform(0.7, 1.9), rng.uniform(0.8, 1.15)
        for _ in range(int(rng.integers(15, 60))):
            course = course / np.linalg.norm(course) + 0.25 * rng.normal(size=3)
            place = place + 0.9 * course
            points.append((*place, thickness, bright))
    _, ny, nx = radius.shape
    for pz, py, px, thickness, bright in points:
        reach = max(thickness, 0.6 * spacing[1])
        slices = np.flatnonzero(np.abs(z[:, 0, 0] - pz) < max(reach, 0.3 * spacing[0] if spacing[0] > 2 else reach))
        row, column = py / spacing[1] + (ny - 1) / 2, px / spacing[2] + (nx - 1) / 2
        r = reach / spacing[1]
        top, bottom = max(0, int(row - r)), min(ny, int(row + r) + 2)
        left, right = max(0, int(column - r)), min(nx, int(column + r) + 2)
        if top >= bottom or left >= right:
            continue
        yy, xx = np.arange(top, bottom), np.arange(left, right)
        disc = (yy[:, None] - row) ** 2 + (xx - column) ** 2 < max(r, 0.75) ** 2
        for s in slices:
            patch = t1c[s, top:bottom, left:right]
            patch[disc & (radius[s, top:bottom, left:right] < 1.02)] = bright


def _metastases(rng: np.random.Generator, settings: PhantomSettings, head: _Head) -> tuple[PhantomLesion, ...]:
    """Draw metastases at random places in the brain."""
    inside = np.argwhere(head.radius < 0.93)
    if not len(inside):
        return ()
    rough = _noise(rng, settings.shape, head.spacing, 7.0)
    count = int(rng.integers(settings.lesions[0], settings.lesions[1] + 1))
    return tuple(_metastasis(rng, settings, head, inside, rough) for _ in range(count))


def _metastasis(
    rng: np.random.Generator, settings: PhantomSettings, head: _Head, inside: NDArray[np.intp], rough: Array
) -> PhantomLesion:
    """Draw one metastasis, centred on one of the voxels *inside*, its surface and texture made *rough*."""
    z, y, x = head.at
    smallest, largest = settings.diameter_mm
    diameter = smallest + (largest - smallest) * float(rng.beta(1.3, 2.2))  # half of them below 10 of 2 … 25 mm
    centre = inside[rng.integers(len(inside))]
    cz, cy, cx = float(z[centre[0], 0, 0]), float(y[0, centre[1], 0]), float(x[0, 0, centre[2]])
    cz += float(rng.uniform(-0.5, 0.5)) * min(head.spacing[0], diameter)
    stretch = np.exp(rng.uniform(-0.18, 0.18, 3))
    distance = np.sqrt(((z - cz) * stretch[0]) ** 2 + ((y - cy) * stretch[1]) ** 2 + ((x - cx) * stretch[2]) ** 2)
    half = diameter / 2
    core = distance + 0.13 * half * rough < half
    core &= head.radius < 1.0
    ring = bool(diameter > 8 and rng.random() < settings.ring_share)
    oedema = bool(diameter > 5 and rng.random() < settings.oedema_share)
    if oedema:
        extent = half * rng.uniform(1.4, 2.2) + 3
        halo = (distance + 0.35 * half * rough < extent) & (head.radius < 0.94) & (head.label == 0)
        head.t1c[halo] = np.minimum(head.t1c[halo], 0.36 + 0.05 * rough[halo])
        head.t2f[halo] = 0.85
    bright = rng.uniform(0.82, 1.12)
    head.t1c[core] = bright + 0.05 * rough[core]
    head.t2f[core] = 0.65
    if ring:
        necrosis = distance + 0.2 * half * rough < half - max(1.6, 0.28 * half)
        head.t1c[necrosis & core] = rng.uniform(0.2, 0.36)
    head.label[core] = 1
    return PhantomLesion(centre_mm=(cz, cy, cx), diameter_mm=diameter, ring=ring, oedema=oedema)


def write_phantom_pictures(
    folder: Path,
    patients: int,
    slices_per_patient: int,
    settings: PhantomSettings | None = None,
    seed: int = 0,
    first: int = 1,
) -> None:
    """Write a folder per patient with 8-bit PNG slices and masks: ``patient003/patient003_05.png``, ``…_05_mask.png``.

    Patients are numbered from *first*; number and *seed* alone make a patient.
    """
    from PIL import Image

    settings = settings or PhantomSettings()
    for patient in range(first, first + patients):
        shape = (slices_per_patient, *settings.shape[1:])
        phantom = make_phantom(seed * 1000 + patient, PhantomSettings(**{**vars(settings), "shape": shape}))
        name = f"patient{patient:03d}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        scale = 255 / 1.3
        for number, (image, mask) in enumerate(zip(phantom.image[0], phantom.label, strict=True), start=1):
            stem = folder / name / f"{name}_{number:02d}"
            Image.fromarray((np.clip(image * scale, 0, 255)).astype(np.uint8)).save(f"{stem}.png")
            Image.fromarray(mask * np.uint8(255)).save(f"{stem}_mask.png")


def write_phantom_volumes(folder: Path, cases: int, settings: PhantomSettings | None = None, seed: int = 0) -> None:
    """Write a Decathlon folder of NIfTI volumes: ``imagesTr``, ``labelsTr``, ``dataset.json``."""
    import SimpleITK as sitk

    settings = settings or PhantomSettings()
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    listed = []
    for case in range(1, cases + 1):
        phantom = make_phantom(seed * 1000 + case, settings)
        file = f"phantom_{case:03d}.nii.gz"
        for sub, array in (("imagesTr", phantom.image[0]), ("labelsTr", phantom.label)):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(phantom.spacing_mm[::-1])
            sitk.WriteImage(image, str(folder / sub / file), useCompression=True)
        listed.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    description = {
        "name": "phantoms",
        "modality": {"0": settings.sequences[0]},
        "labels": {"0": "background", "1": "metastasis"},
        "numTraining": cases,
        "training": listed,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
