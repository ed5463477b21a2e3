"""What to train on this data and this machine: dimensions, patch, batch, depth; each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.models.names import DEFAULT_WIDTHS, model_name
from metaseg_cli.errors import ConfigError

# One voxel in this many is foreground when the plan knows nothing (Lin et al. 2017).
_PRIOR = 0.01
_SMALLEST_MAP = 4  # no pooling to fewer voxels per axis
_PATCH_2D = 160
_PATCH_3D = 64
_VOXELS = {2: 8 * 160 * 160, 3: 2 * 64**3}  # per step
_SLICES_FOR_3D = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers that follow from the data; ``reasons`` explains them line by line."""

    dims: int
    patch: tuple[int, int, int]
    batch_size: int
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    iterations_per_epoch: int
    foreground_prior: float = _PRIOR
    reasons: tuple[str, ...] = field(default=())


def make_plan(
    prepared: Prepared,
    cases: Sequence[CaseRecord],
    *,
    model: str,
    dims: int | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    widths: Sequence[int] | None = None,
    iterations_per_epoch: int | None = None,
) -> Plan:
    """Decide for *cases* of *prepared*; what is given is taken as it is. Raises ConfigError."""
    model_name(model)
    reasons = []
    shape = np.median([case.shape for case in cases], axis=0)
    if dims is None:
        dims = 3 if prepared.kind == "volumes" and shape[0] >= _SLICES_FOR_3D else 2
        reasons.append(f"{dims}D: {prepared.kind} of {int(shape[0])} slices (median)")
    patch = _patch(shape, dims, patch_size)
    reasons.append(f"patch {_times(patch[-dims:])}: median case {_times(shape)}")
    given = tuple(widths) if widths else DEFAULT_WIDTHS
    strides = _strides(patch[-dims:], len(given) - 1)
    used = given[: len(strides) + 1]
    if widths and len(used) < len(given):
        raise ConfigError(
            f"{len(given)} widths are too many for a patch of {_times(patch)}", remedy="name fewer widths"
        )
    reasons.append(f"{len(used)} levels: down to {_times(np.array(patch[-dims:]) // np.prod(strides, axis=0))}")
    if batch_size is None:
        # About as many voxels per step whatever the patch: small batches take more steps in the same time.
        voxels = _VOXELS[dims]
        batch_size = int(np.clip(voxels // int(np.prod(patch)), 2, 32))
        reasons.append(f"batch {batch_size}: about {voxels // 1000} thousand voxels a step")
    if iterations_per_epoch is None:
        patches_per_case = [np.prod(np.maximum(1, np.array(case.shape) / patch)) for case in cases]
        patches = int(sum(case.shape[0] for case in cases) if dims == 2 else sum(patches_per_case))
        iterations_per_epoch = int(np.clip(-(-patches // batch_size), 10, 250))
        reasons.append(f"{iterations_per_epoch} steps an epoch: {patches} {'slices' if dims == 2 else 'patches'}")
    voxels_of_cases = sum(int(np.prod(case.shape)) for case in cases)
    foreground = sum(sum(case.lesion_voxels) for case in cases) / max(1, voxels_of_cases)
    prior = float(np.clip(foreground, 1e-4, 0.2)) if foreground else _PRIOR
    reasons.append(f"prior {prior:.4f}: share of foreground voxels")
    return Plan(
        dims=dims,
        patch=patch,
        batch_size=batch_size,
        widths=used,
        strides=strides,
        iterations_per_epoch=iterations_per_epoch,
        foreground_prior=prior,
        reasons=tuple(reasons),
    )


def _times(sizes: Iterable[float]) -> str:
    return "×".join(str(int(size)) for size in sizes)


def _patch(shape: np.ndarray, dims: int, given: Sequence[int] | None) -> tuple[int, int, int]:
    if given:
        full = tuple(given) * dims if len(given) == 1 else tuple(given)
        if len(full) != dims:
            raise ConfigError(f"a {dims}D patch has {dims} sizes, got {tuple(given)}")
        return (1, full[0], full[1]) if dims == 2 else (full[0], full[1], full[2])
    most = _PATCH_2D if dims == 2 else _PATCH_3D
    z, y, x = (int(min(most, -(-n // 16) * 16)) for n in shape)
    return (1 if dims == 2 else z, y, x)


def _strides(patch: Sequence[int], most: int) -> tuple[tuple[int, ...], ...]:
    """Halve each axis while it stays at least 4 voxels long, at most *most* times."""
    size = list(patch)
    strides: list[tuple[int, ...]] = []
    while len(strides) < most:
        step = tuple(2 if n // 2 >= _SMALLEST_MAP else 1 for n in size)
        if all(s == 1 for s in step):
            break
        strides.append(step)
        size = [n // s for n, s in zip(size, step, strict=True)]
    if not strides:
        raise ConfigError(f"a patch of {_times(patch)} is too small for a U-Net", remedy="use larger images")
    return tuple(strides)
