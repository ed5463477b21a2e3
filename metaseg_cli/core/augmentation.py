"""Random augmentation of a batch on its device; drawing parameters is apart from applying them, to test both.

All spatial changes (rotation, scaling, flips, elastic deformation) are one resampling of image and target together.
Targets come out soft, between 0 and 1, along resampled edges: hardened, a lesion of one or two voxels that falls
between the grid's points would vanish from the target and stay in the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metaseg_cli.core.intensity import ABOVE_BACKGROUND

_ELASTIC_NODES = 5  # per axis, over the patch: bends longer than most lesions
_BIAS_NODES = 3  # per axis: a bias field varies over half the head
_RIM = 5  # width of the neighbourhood in which a pasted lesion is matched in brightness: two voxels around it
_BLUR_RADIUS = 3  # voxels: 2.5 times the largest sigma


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How strong and how often; angles in degrees, the rest as factors or in standard deviations of the image.

    Most ranges are close to nnU-Net's (Isensee et al. 2021). Elastic deformation, bias field and Gibbs ringing, which
    nnU-Net lacks, were chosen and not measured.
    """

    spatial: float = 0.5
    rotation: float = 30.0
    tilt: float = 10.0  # out of the axial plane, in 3D
    scale: tuple[float, float] = (0.75, 1.33)
    stretch: float = 0.1  # of each axis on its own, as a logarithm
    elastic: float = 0.2  # probability
    displacement: float = 0.08  # standard deviation, as a fraction of the distance between the elastic nodes
    flip_axes: tuple[int, ...] = (-1, -2)  # counted from the last
    paste: float = 0.0  # probability that a patch without lesion gets that of another one
    brightness: float = 0.3
    contrast: tuple[float, float] = (0.75, 1.33)
    gamma: tuple[float, float] = (0.7, 1.5)
    bias: float = 0.25  # standard deviation of the logarithm at the bias field's nodes
    noise: float = 0.15
    blur: tuple[float, float] = (0.5, 1.2)
    low_resolution: tuple[float, float] = (0.5, 1.0)
    gibbs: tuple[float, float] = (0.5, 0.9)  # fraction of k-space that is kept, per axis
    each: float = 0.2  # probability of every single intensity change …
    rarely: float = 0.08  # … and of those that cost more: bias field and Gibbs ringing
    drop_sequence: float = 0.0  # modality dropout: probability that a sequence is removed; one always stays


@dataclass(frozen=True)
class Parameters:
    """What is done to each of B patches of C sequences; 0 or 1 where nothing is done to a patch."""

    affine: Tensor  # (B, dims, dims + 1), output grid → input grid, in grid_sample's −1 … 1 coordinates
    elastic: Tensor  # (B, dims, nodes, …) displacement in the same coordinates
    moved: Tensor  # (B,) bool: affine is not the identity, or there is a displacement
    flipped: Tensor  # (B, dims) bool, in the order of the axes: mirrored first
    pasted: Tensor  # (B,) bool: takes another patch's lesion if it has none
    brightness: Tensor  # (B, C)
    contrast: Tensor  # (B, C)
    gamma: Tensor  # (B,)
    bias: Tensor  # (B, nodes, …) logarithm of the field
    noise: Tensor  # (B,) standard deviation
    blur: Tensor  # (B,) sigma in voxels, 0: none
    low_resolution: Tensor  # (B,) factor, 1: none
    gibbs: Tensor  # (B,) share of k-space, 1: all
    dropped: Tensor  # (B, C) bool; a case of which nothing would be left keeps everything
    seed: int


def draw(settings: Augmentation, shape: tuple[int, ...], rng: np.random.Generator) -> Parameters:
    """Draw parameters for a batch of *shape* ``(B, C, *spatial)``; C counts sequences, not their adjacent slices."""
    b, c, *spatial = shape
    dims = len(spatial)
    affine = np.zeros((b, dims, dims + 1))
    elastic = np.zeros((b, dims, *(_ELASTIC_NODES,) * dims), np.float32)
    moved = np.zeros(b, dtype=bool)
    flipped = np.zeros((b, dims), dtype=bool)
    for i in range(b):
        matrix = np.eye(dims)
        if rng.random() < settings.spatial:
            zoom = np.exp(rng.uniform(*np.log(settings.scale))) * np.exp(
                rng.uniform(-settings.stretch, settings.stretch, dims)
            )
            matrix = _rotation(dims, settings, rng) @ np.diag(1 / zoom)
            # grid_sample counts in half sizes of each axis; a rotation must count in voxels.
            size = np.array(spatial[::-1], dtype=float)
            matrix = np.diag(1 / size) @ matrix @ np.diag(size)
            moved[i] = True
        if rng.random() < settings.elastic:
            between = 2 / (_ELASTIC_NODES - 1)
            elastic[i] = rng.normal(0, settings.displacement * between, elastic.shape[1:])
            moved[i] = True
        for axis in settings.flip_axes:
            flipped[i, axis] = rng.random() < 0.5
        affine[i, :, :dims] = matrix

    def sometimes(
        low: float, high: float, none: float, size: tuple[int, ...] = (b,), chance: float = settings.each
    ) -> Tensor:
        chosen = rng.random((b,) + (1,) * (len(size) - 1)) < chance
        return torch.from_numpy(np.where(chosen, rng.uniform(low, high, size), none)).float()

    biased = rng.random((b,) + (1,) * dims) < settings.rarely
    bias = np.where(biased, rng.normal(0, settings.bias, (b, *(_BIAS_NODES,) * dims)), 0.0)
    return Parameters(
        affine=torch.from_numpy(affine).float(),
        elastic=torch.from_numpy(elastic),
        moved=torch.from_numpy(moved),
        flipped=torch.from_numpy(flipped),
        pasted=torch.from_numpy(rng.random(b) < settings.paste),
        brightness=sometimes(-settings.brightness, settings.brightness, 0.0, (b, c)),
        contrast=sometimes(*settings.contrast, 1.0, (b, c)),
        gamma=sometimes(*settings.gamma, 1.0),
        bias=torch.from_numpy(bias).float(),
        noise=sometimes(0.0, settings.noise, 0.0),
        blur=sometimes(*settings.blur, 0.0),
        low_resolution=sometimes(*settings.low_resolution, 1.0),
        gibbs=sometimes(*settings.gibbs, 1.0, chance=settings.rarely),
        dropped=torch.from_numpy(rng.random((b, c)) < settings.drop_sequence),
        seed=int(rng.integers(2**31)),
    )


def _rotation(dims: int, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Return a rotation in the axis order of ``grid_sample``: x, y(, z)."""
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
    """Return changed copies of *image* ``(B, C·(2k + 1), *spatial)`` and *target* ``(B, R, *spatial)``, in 0 … 1."""
    image, target = _pasted(image, target, p)
    for i in p.flipped.any(dim=1).nonzero().flatten().tolist():
        axes = [1 + int(axis) for axis in p.flipped[i].nonzero().flatten()]
        image[i], target[i] = image[i].flip(axes), target[i].flip(axes)
    rows = p.moved.nonzero().flatten()
    if len(rows):
        # Image and target go through one sampling grid in one call.
        where = rows.to(image.device)
        both = torch.cat([image[where], target[where]], dim=1)
        grid = _affine_grid(p.affine[rows].to(image.device), both.shape[2:])
        for i, nodes in enumerate(p.elastic[rows]):
            if nodes.any():
                grid[i] += _enlarged(nodes[None].to(image.device), both.shape[2:])[0].movedim(0, -1)
        both = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
        image[where] = both[:, : image.shape[1]]
        target[where] = both[:, image.shape[1] :]
    return _intensities(image, p), target


def _affine_grid(affine: Tensor, size: torch.Size) -> Tensor:
    """Compute ``F.affine_grid`` without a matrix product over all voxels: each axis adds its part along itself."""
    dims = len(size)
    grid = affine[:, :, dims].view(-1, *(1,) * dims, dims).expand(-1, *size, -1).contiguous()
    for column in range(dims):  # x, y(, z): the last axis first
        n = size[dims - 1 - column]
        at = (2 * torch.arange(n, device=affine.device, dtype=affine.dtype) + 1) / n - 1
        share = at[None, :, None] * affine[:, None, :, column]  # (B, n, dims)
        shape = [len(affine), *(1,) * dims, dims]
        shape[dims - column] = n
        grid += share.view(shape)
    return grid


def _enlarged(nodes: Tensor, size: torch.Size) -> Tensor:
    """Return a smooth field ``(B, n, *size)`` through *nodes* ``(B, n, …)``."""
    return F.interpolate(
        nodes, size=tuple(size), mode="bicubic" if nodes.dim() == 4 else "trilinear", align_corners=True
    )


def _pasted(image: Tensor, target: Tensor, p: Parameters) -> tuple[Tensor, Tensor]:
    """Return copies in which patches without lesion have the lesions of another patch where *p* says so.

    A lesion is pasted with a soft rim and shifted in brightness by the difference of the surroundings, so that no edge
    gives it away. Nothing is pasted outside the head.
    """
    image, target = image.clone(), target.clone()
    filled = target.flatten(1).any(dim=1).cpu()
    into = (p.pasted & ~filled).nonzero().flatten()
    donors = filled.nonzero().flatten()
    if not len(into) or not len(donors):
        return image, target
    chosen = donors[torch.arange(len(into)) % len(donors)].to(image.device)
    into = into.to(image.device)
    here, there = image[into], image[chosen]
    axes = tuple(range(2, image.dim()))
    # A patch's lowest value is taken for background, where there are no lesions.
    head = (here > here.amin(axes, keepdim=True) + ABOVE_BACKGROUND).any(dim=1, keepdim=True).to(image)
    lesion = target[chosen].amax(dim=1, keepdim=True)
    wide = _max_pool(lesion, _RIM)
    rim = (wide - lesion) * head
    weight = rim.sum(axes, keepdim=True)
    shift = ((here - there) * rim).sum(axes, keepdim=True) / weight.clamp_min(1.0)
    alpha = _mean_pool(_max_pool(lesion, 3), 3) * head * (weight > 0)
    image[into] = torch.lerp(here, there + shift, alpha)
    target[into] = target[chosen] * head * (weight > 0)
    return image, target


def _max_pool(x: Tensor, size: int) -> Tensor:
    pool = F.max_pool2d if x.dim() == 4 else F.max_pool3d
    return pool(x, size, stride=1, padding=size // 2)


def _mean_pool(x: Tensor, size: int) -> Tensor:
    pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool3d
    return pool(x, size, stride=1, padding=size // 2)


def drop_sequences(image: Tensor, available: Tensor, p: Parameters) -> tuple[Tensor, Tensor]:
    """Return *image* ``(B, C·(2k + 1), *spatial)`` and *available* ``(B, C)`` without the sequences that *p* drops.

    Never all of them.
    """
    stays = available & ~p.dropped.to(available.device)
    stays = torch.where(stays.any(dim=1, keepdim=True), stays, available)
    return image * _per_channel(stays.to(image), image), stays


def repeat_channels(image: Tensor, p: Parameters) -> Tensor:
    """Replace dropped channels of colour pictures by others that stay.

    Such pictures cannot say that a channel is missing: people who lacked a sequence repeated another one.
    """
    b, c = p.dropped.shape
    blocks = image.view(b, c, -1, *image.shape[2:])
    result = blocks.clone()
    for i in p.dropped.any(dim=1).nonzero().flatten().tolist():
        kept = (~p.dropped[i]).nonzero().flatten().tolist()
        for k, channel in enumerate(p.dropped[i].nonzero().flatten().tolist() if kept else []):
            result[i, channel] = blocks[i, kept[k % len(kept)]]
    return result.view_as(image)


def _per_channel(values: Tensor, image: Tensor) -> Tensor:
    """Expand ``(B, C)`` to a factor for every channel of *image*, adjacent slices alike."""
    repeated = values.to(image.device).repeat_interleave(image.shape[1] // values.shape[1], dim=1)
    return repeated.view(*repeated.shape, *(1,) * (image.dim() - 2))


def _intensities(image: Tensor, p: Parameters) -> Tensor:
    for i in (p.blur > 0).nonzero().flatten().tolist():
        image[i] = _blurred(image[i], float(p.blur[i]))
    for i in (p.low_resolution < 1).nonzero().flatten().tolist():
        image[i] = _coarsened(image[i], float(p.low_resolution[i]))
    for i in (p.gibbs < 1).nonzero().flatten().tolist():
        image[i] = _ringing(image[i], float(p.gibbs[i]))
    image = image * _per_channel(p.contrast, image) + _per_channel(p.brightness, image)
    for i in (p.gamma != 1).nonzero().flatten().tolist():
        low, high = image[i].amin(), image[i].amax()
        span = (high - low).clamp_min(1e-6)
        image[i] = ((image[i] - low) / span).pow(float(p.gamma[i])) * span + low
    for i in p.bias.flatten(1).any(dim=1).nonzero().flatten().tolist():
        field = _enlarged(p.bias[i, None, None].to(image.device), image.shape[2:])[0].exp()
        low = image[i].amin()
        image[i] = (image[i] - low) * field + low
    noisy = (p.noise > 0).nonzero().flatten().tolist()
    if noisy:
        generator = torch.Generator(device=image.device).manual_seed(p.seed)
        for i in noisy:
            image[i] += float(p.noise[i]) * torch.randn(image[i].shape, generator=generator, device=image.device)
    return image


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur ``(C, …, Y, X)`` in plane with a Gaussian."""
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(_BLUR_RADIUS + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    # Sums of shifted copies: on a processor a convolution of one channel takes three times as long in 2D, twenty in 3D.
    for axis, pads in ((-1, (_BLUR_RADIUS, _BLUR_RADIUS, 0, 0)), (-2, (0, 0, _BLUR_RADIUS, _BLUR_RADIUS))):
        n = image.shape[axis]
        wide = F.pad(image.reshape(-1, 1, *image.shape[-2:]), pads, mode="replicate")
        blurred = wide.narrow(axis, _BLUR_RADIUS, n) * (weights[0] / total)
        for offset in range(1, _BLUR_RADIUS + 1):
            share = weights[offset] / total
            blurred.add_(wide.narrow(axis, _BLUR_RADIUS - offset, n), alpha=share)
            blurred.add_(wide.narrow(axis, _BLUR_RADIUS + offset, n), alpha=share)
        image = blurred.reshape(image.shape)
    return image


def _coarsened(image: Tensor, factor: float) -> Tensor:
    """Return *image* as if scanned at *factor* of its in-plane resolution."""
    planes = image.reshape(-1, 1, *image.shape[-2:])
    size = [max(1, round(n * factor)) for n in image.shape[-2:]]
    small = F.interpolate(planes, size=size, mode="area")
    return F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False).reshape(image.shape)


def _ringing(image: Tensor, kept: float) -> Tensor:
    """Return *image* with Gibbs ringing, as if only the central *kept* of k-space per in-plane axis was measured."""
    y, x = image.shape[-2:]
    spectrum = torch.fft.rfft2(image)
    fy = torch.fft.fftfreq(y, device=image.device).abs() <= kept / 2
    fx = torch.fft.rfftfreq(x, device=image.device) <= kept / 2
    return torch.fft.irfft2(spectrum * (fy[:, None] & fx[None, :]), s=(y, x))
