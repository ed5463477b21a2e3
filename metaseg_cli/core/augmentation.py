"""Random changes of a training batch, on its device: parameters apart from their effect, so both can be tested.

All spatial changes (rotation, scaling, flips) are one resampling of image and target together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How strong and how often; angles in degrees, the rest as factors or in standard deviations of the image."""

    spatial: float = 0.5
    rotation: float = 30.0
    tilt: float = 10.0  # out of the axial plane, in 3D
    scale: tuple[float, float] = (0.75, 1.33)
    flip_axes: tuple[int, ...] = (-1, -2)  # counted from the last
    brightness: float = 0.3
    contrast: tuple[float, float] = (0.75, 1.33)
    gamma: tuple[float, float] = (0.7, 1.5)
    noise: float = 0.15
    blur: tuple[float, float] = (0.5, 1.2)
    low_resolution: tuple[float, float] = (0.5, 1.0)
    each: float = 0.2  # chance of every single intensity change
    drop_sequence: float = 0.0  # chance of every sequence to be taken away; one always stays


@dataclass(frozen=True)
class Parameters:
    """What will be done to each of B patches. NaN or 1/0 where nothing is done to a patch."""

    affine: Tensor  # (B, dims, dims + 1), output grid → input grid, in grid_sample's −1 … 1 coordinates
    moved: Tensor  # (B,) bool: affine is not the identity
    brightness: Tensor  # (B, C)
    contrast: Tensor  # (B, C)
    gamma: Tensor  # (B,)
    noise: Tensor  # (B,) standard deviation
    blur: Tensor  # (B,) sigma in voxels, 0: none
    low_resolution: Tensor  # (B,) factor, 1: none
    dropped: Tensor  # (B, C) bool; a case of which nothing would be left keeps everything
    seed: int


def draw(settings: Augmentation, shape: tuple[int, ...], rng: np.random.Generator) -> Parameters:
    """Parameters for a batch of *shape* ``(B, C, *spatial)``."""
    b, c, *spatial = shape
    dims = len(spatial)
    affine = np.zeros((b, dims, dims + 1))
    moved = np.zeros(b, dtype=bool)
    for i in range(b):
        matrix = np.eye(dims)
        if rng.random() < settings.spatial:
            zoom = np.exp(rng.uniform(*np.log(settings.scale))) * np.exp(rng.uniform(-0.1, 0.1, dims))
            matrix = _rotation(dims, settings, rng) @ np.diag(1 / zoom)
            # grid_sample counts in half sizes of each axis; a rotation must count in voxels.
            size = np.array(spatial[::-1], dtype=float)
            matrix = np.diag(1 / size) @ matrix @ np.diag(size)
            moved[i] = True
        for axis in settings.flip_axes:
            if rng.random() < 0.5:
                matrix[:, -1 - axis] *= -1
                moved[i] = True
        affine[i, :, :dims] = matrix

    none = np.zeros((b, c), dtype=bool)

    def sometimes(low: float, high: float, none: float, size: tuple[int, ...] = (b,)) -> Tensor:
        chosen = rng.random((b,) + (1,) * (len(size) - 1)) < settings.each
        return torch.from_numpy(np.where(chosen, rng.uniform(low, high, size), none)).float()

    return Parameters(
        affine=torch.from_numpy(affine).float(),
        moved=torch.from_numpy(moved),
        brightness=sometimes(-settings.brightness, settings.brightness, 0.0, (b, c)),
        contrast=sometimes(*settings.contrast, 1.0, (b, c)),
        gamma=sometimes(*settings.gamma, 1.0),
        noise=sometimes(0.0, settings.noise, 0.0),
        blur=sometimes(*settings.blur, 0.0),
        low_resolution=sometimes(*settings.low_resolution, 1.0),
        dropped=torch.from_numpy(rng.random((b, c)) < settings.drop_sequence if settings.drop_sequence else none),
        seed=int(rng.integers(2**31)),
    )


def _rotation(dims: int, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """A rotation in grid_sample's axis order x, y(, z)."""
    matrix = np.eye(dims)
    planes = (
        [(0, 1, settings.rotation)]
        if dims == 2
        else [
            (0, 1, settings.rotation),
            (0, 2, settings.tilt),
            (1, 2, settings.tilt),
        ]
    )
    for a, b, degrees in planes:
        angle = np.deg2rad(rng.uniform(-degrees, degrees))
        plane = np.eye(dims)
        plane[a, a] = plane[b, b] = np.cos(angle)
        plane[a, b], plane[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ plane
    return matrix


def apply(image: Tensor, target: Tensor, p: Parameters) -> tuple[Tensor, Tensor]:
    """*image* ``(B, C, *spatial)`` and *target* ``(B, R, *spatial)`` → changed copies; the target stays 0 or 1."""
    image, target = image.clone(), target.clone()
    rows = p.moved.nonzero().flatten().to(image.device)
    if len(rows):
        # Image and target ride through one sampling grid, and one call, together.
        both = torch.cat([image[rows], target[rows]], dim=1)
        grid = F.affine_grid(p.affine[rows.cpu()].to(image.device), list(both.shape), align_corners=False)
        both = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
        image[rows] = both[:, : image.shape[1]]
        target[rows] = (both[:, image.shape[1] :] >= 0.5).float()
    return _intensities(image, p), target


def drop_sequences(image: Tensor, present: Tensor, p: Parameters) -> tuple[Tensor, Tensor]:
    """*image* ``(B, C, *spatial)`` and *present* ``(B, C)`` without the sequences that *p* takes away; never all."""
    stays = present & ~p.dropped.to(present.device)
    stays = torch.where(stays.any(dim=1, keepdim=True), stays, present)
    return image * stays.to(image).view(*stays.shape, *(1,) * (image.dim() - 2)), stays


def _intensities(image: Tensor, p: Parameters) -> Tensor:
    device = image.device
    ones = (1,) * (image.dim() - 2)
    for i in (p.blur > 0).nonzero().flatten().tolist():
        image[i] = _blurred(image[i], float(p.blur[i]))
    for i in (p.low_resolution < 1).nonzero().flatten().tolist():
        image[i] = _coarsened(image[i], float(p.low_resolution[i]))
    image = image * p.contrast.to(device).view(*p.contrast.shape, *ones)
    image = image + p.brightness.to(device).view(*p.brightness.shape, *ones)
    for i in (p.gamma != 1).nonzero().flatten().tolist():
        low, high = image[i].amin(), image[i].amax()
        span = (high - low).clamp_min(1e-6)
        image[i] = ((image[i] - low) / span).pow(float(p.gamma[i])) * span + low
    noisy = (p.noise > 0).nonzero().flatten().tolist()
    if noisy:
        generator = torch.Generator(device=device).manual_seed(p.seed)
        for i in noisy:
            image[i] += float(p.noise[i]) * torch.randn(image[i].shape, generator=generator, device=device)
    return image


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur in plane of ``(C, …, Y, X)``."""
    offsets = torch.arange(-3, 4, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = image.reshape(-1, 1, *image.shape[-2:])
    planes = F.conv2d(F.pad(planes, (3, 3, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 7))
    planes = F.conv2d(F.pad(planes, (0, 0, 3, 3), mode="replicate"), kernel.view(1, 1, 7, 1))
    return planes.reshape(image.shape)


def _coarsened(image: Tensor, factor: float) -> Tensor:
    """*image* as if scanned at *factor* of its in-plane resolution."""
    planes = image.reshape(-1, 1, *image.shape[-2:])
    size = [max(1, round(n * factor)) for n in image.shape[-2:]]
    small = F.interpolate(planes, size=size, mode="area")
    return F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False).reshape(image.shape)
