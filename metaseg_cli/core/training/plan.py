"""What to train on this data and this device: dimensions, patch, batch, depth; each with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.choices import DEFAULT_WIDTHS, NETWORKS, network_name
from metaseg_cli.core.counts import counted, sizes_with_axes
from metaseg_cli.core.preprocessing import is_anisotropic
from metaseg_cli.core.typed_json import stored_as
from metaseg_cli.errors import ConfigError

_DEFAULT_PRIOR = 0.01  # foreground probability where the training cases have none (Lin et al. 2017)
_PRIOR_LIMITS = (1e-4, 0.2)  # of the measured share of foreground: further out the first steps lose the signal
_MIN_MAP = 4  # no pooling to fewer voxels per axis: nnU-Net (Isensee et al. 2021)
_MIN_SLICES_3D = 16  # a third dimension that can be halved twice
_MAX_WIDTH_3D = 320  # nnU-Net; in 3D the deepest levels see few voxels, and wider ones cost more than they learn
# Longest side of a patch, and voxels per step. Small steps learn more per minute on a processor (docs/concepts/
# performance.md); a GPU must be filled: nnU-Net's sizes for 2D (512) and 3D (128³, batch 2).
_LONGEST_SIDE = {("cpu", 2): 160, ("cpu", 3): 64, ("gpu", 2): 512, ("gpu", 3): 128}
_VOXELS_PER_STEP = {("cpu", 2): 8 * 160**2, ("cpu", 3): 2 * 64**3, ("gpu", 2): 32 * 256**2, ("gpu", 3): 2 * 128**3}
# Measured on phantoms ("Metastases of 2 to 5 mm" in docs/concepts/performance.md): where 19 of 20 lesions are at most
# this many voxels across, a processor learns most from many small steps of a network of half the width.
_SMALL_LESION = 8.0
_SMALL_LESION_PERCENTILE = 95
_SMALL_SIDE, _SMALL_VOXELS_PER_STEP = 32, 4 * 32**3
_NARROW_WIDTHS = tuple(width // 2 for width in DEFAULT_WIDTHS)
_BATCH_LIMITS = (2, 64)
_MEMORY_SHARE = 0.7  # of what is free; the rest is for read-ahead, validation and what other programs may take
# Predicting a voxel costs a third of training on it, and most are predicted twice, with the search for hard negatives:
# with this many voxels trained per validated one, validation takes a tenth of its epoch.
_TRAINED_PER_VALIDATED = 10
_STEPS_LIMITS = (10, 250)  # of an epoch that sees every slice or patch once …
_MAX_STEPS = 1000  # … and of one that is longer so that validation is rare


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """What the plan must know of the device. *memory_bytes* is what is free, None when unknown."""

    gpu: bool = False
    memory_bytes: int | None = None

    @property
    def kind(self) -> str:
        """As the tables of sizes have it."""
        return "gpu" if self.gpu else "cpu"


@dataclass(frozen=True, kw_only=True)
class PlanOverrides:
    """Numbers that the user sets; None and () leave them to the plan."""

    dims: int | None = None
    context: int | None = None
    patch: tuple[int, ...] = ()
    batch_size: int | None = None
    widths: tuple[int, ...] = ()
    steps_per_epoch: int | None = None
    foreground_prior: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers that follow from data and device; ``reasons`` explains them line by line."""

    dims: int
    context: int
    patch: tuple[int, int, int]
    batch_size: int
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    steps_per_epoch: int = field(metadata=stored_as("iterations_per_epoch"))
    foreground_prior: float
    memory_bytes: int  # what a step is estimated to need
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _TypicalCase:
    """Median shape and spacing of the training cases."""

    shape: NDArray[np.float64]
    spacing: tuple[float, float, float] | None

    @property
    def has_thick_slices(self) -> bool:
        """Anisotropic slices are not a third dimension to convolve over."""
        return is_anisotropic(self.spacing)


@dataclass(frozen=True)
class _Scale:
    """How large network and patches may be."""

    widths: tuple[int, ...]
    longest_side: int
    voxels_per_step: int
    reason: str = ""


def make_plan(
    prepared: Prepared,
    training: Sequence[CaseRecord],
    validation: Sequence[CaseRecord] = (),
    *,
    model: str,
    device: DeviceInfo | None = None,
    overrides: PlanOverrides,
) -> Plan:
    """Decide for *training* cases of *prepared*. The same input gives the same plan. Raises ConfigError."""
    name, device = network_name(model), device or DeviceInfo()
    case = _TypicalCase(np.median([each.shape for each in training], axis=0), _median_spacing(training))
    dims, context, why_dims = _dimensions(prepared, case, overrides)
    scale = _scale(name, dims, device, training, overrides)
    patch, why_patch = _patch(case, dims, scale, overrides)
    widths, strides, why_levels = _levels(case, dims, patch, scale, overrides)
    bytes_per_patch = _training_bytes(name, int(np.prod(patch)), widths, strides)
    batch_size, why_batch = _batch_size(patch, scale, device, bytes_per_patch, overrides)
    memory = batch_size * bytes_per_patch
    steps, why_steps = _steps_per_epoch(training, validation, dims, patch, batch_size, overrides)
    prior = overrides.foreground_prior or _foreground_share(training)
    why_prior = f"prior {prior:.4f}: {'as asked' if overrides.foreground_prior else 'share of foreground voxels'}"
    why_memory = f"about {memory / 1e9:.1f} GB of memory for a step"
    reasons = (why_dims, scale.reason, why_patch, why_levels, *why_batch, why_memory, why_steps, why_prior)
    return Plan(
        dims=dims,
        context=context,
        patch=patch,
        batch_size=batch_size,
        widths=widths,
        strides=strides,
        steps_per_epoch=steps,
        foreground_prior=prior,
        memory_bytes=memory,
        reasons=tuple(reason for reason in reasons if reason),
    )


def _dimensions(prepared: Prepared, case: _TypicalCase, overrides: PlanOverrides) -> tuple[int, int, str]:
    """Return dimensions, adjacent slices on each side, and the reason."""
    depth, volumes = int(case.shape[0]), prepared.kind == "volumes"
    dims = overrides.dims
    if dims is None:
        dims = 3 if volumes and depth >= _MIN_SLICES_3D and not case.has_thick_slices else 2
    # A picture is often predicted alone: a network that learnt to use its neighbours would miss them.
    context = overrides.context
    if context is None:
        context = 1 if dims == 2 and volumes and depth > 1 else 0
    if dims == 3 and context:
        raise ConfigError("--context is for 2D networks", remedy="leave it out, or take --dims 2")
    what = f"{prepared.kind} of {counted(depth, 'slice')} (median)"
    if case.has_thick_slices and case.spacing is not None:
        what += f", {case.spacing[0]:.1f} mm thick against {min(case.spacing[1:]):.1f} mm in plane"
    label = "2.5D" if context else f"{dims}D"
    asked = " (as asked)" if overrides.dims is not None or overrides.context is not None else ""
    adjacent = f"; adjacent slices on each side: {context}" if context else ""
    return dims, context, f"{label}{asked}: {what}{adjacent}"


def _scale(
    name: str, dims: int, device: DeviceInfo, training: Sequence[CaseRecord], overrides: PlanOverrides
) -> _Scale:
    side, voxels = _LONGEST_SIDE[device.kind, dims], _VOXELS_PER_STEP[device.kind, dims]
    across = _lesion_diameter(training)
    widths: tuple[int, ...] = DEFAULT_WIDTHS
    reason = ""
    if not device.gpu and dims == 3 and across <= _SMALL_LESION:
        widths, side, voxels = _NARROW_WIDTHS, _SMALL_SIDE, _SMALL_VOXELS_PER_STEP
        reason = f"lesions of up to {across:.0f} voxels: small patches and narrow levels, for more steps"
    elif not device.gpu and dims == 2 and NETWORKS[name].narrow_on_cpu and not overrides.widths:
        widths = _NARROW_WIDTHS
        reason = f"{name} on a processor: narrow levels, for twice as many steps"
    if dims == 3:
        widths = tuple(min(width, _MAX_WIDTH_3D) for width in widths)
    return _Scale(overrides.widths or widths, side, voxels, reason)


def _patch(case: _TypicalCase, dims: int, scale: _Scale, overrides: PlanOverrides) -> tuple[tuple[int, int, int], str]:
    """Return the patch ``(Z, Y, X)``, by default as large as the case where the device allows, and the reason."""
    given = overrides.patch
    if given:
        full = tuple(given) * dims if len(given) == 1 else tuple(given)
        if len(full) != dims:
            raise ConfigError(f"a {dims}D patch has {dims} sizes, got {tuple(given)}")
        return (
            (1, full[0], full[1]) if dims == 2 else (full[0], full[1], full[2])
        ), f"patch {sizes_with_axes(full)}: as asked"
    poolings = len(scale.widths) - 1

    def fitted(length: float) -> int:
        # No larger than the case, but for what the poolings must divide by.
        halvings = int(np.clip(math.log2(max(length, 1) / _MIN_MAP), 1, poolings))
        return int(min(scale.longest_side, -(-length // 2**halvings) * 2**halvings))

    z, y, x = (fitted(n) for n in case.shape)
    patch = (1 if dims == 2 else z, y, x)
    return patch, f"patch {sizes_with_axes(patch[-dims:])}: median case {sizes_with_axes(case.shape)}"


def _levels(
    case: _TypicalCase, dims: int, patch: tuple[int, int, int], scale: _Scale, overrides: PlanOverrides
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], str]:
    """Return channels per level, the poolings between them, and the reason."""
    spacing = case.spacing[-dims:] if case.spacing else None
    strides = _strides(patch[-dims:], spacing, len(scale.widths) - 1)
    widths = scale.widths[: len(strides) + 1]
    if overrides.widths and len(widths) < len(scale.widths):
        raise ConfigError(
            f"{len(scale.widths)} widths are too many for a patch of {sizes_with_axes(patch)}",
            remedy="name fewer widths",
        )
    coarsest = sizes_with_axes(np.array(patch[-dims:]) // np.prod(strides, axis=0))
    alike = len({stride for step in strides for stride in step}) == 1
    reason = f"{counted(len(widths), 'level')} of {', '.join(map(str, widths))} channels: down to {coarsest}"
    return widths, strides, reason if alike else f"{reason}, the coarse axis pooled last"


def _strides(patch: Sequence[int], spacing: Sequence[float] | None, poolings: int) -> tuple[tuple[int, ...], ...]:
    """Halve each axis while it stays at least 4 voxels long, at most *poolings* times.

    An axis more than twice as coarse as the finest waits until the others have caught up.
    """
    size = list(patch)
    now = list(spacing) if spacing is not None else [1.0] * len(size)
    strides: list[tuple[int, ...]] = []
    while len(strides) < poolings:
        able = [n // 2 >= _MIN_MAP for n in size]
        if not any(able):
            break
        finest = min(s for s, a in zip(now, able, strict=True) if a)
        step = tuple(2 if a and s <= 2 * finest else 1 for a, s in zip(able, now, strict=True))
        strides.append(step)
        size = [n // s for n, s in zip(size, step, strict=True)]
        now = [n * s for n, s in zip(now, step, strict=True)]
    if not strides:
        raise ConfigError(f"a patch of {sizes_with_axes(patch)} is too small for a U-Net", remedy="use larger images")
    return tuple(strides)


def _batch_size(
    patch: tuple[int, int, int], scale: _Scale, device: DeviceInfo, bytes_per_patch: int, overrides: PlanOverrides
) -> tuple[int, list[str]]:
    """Return the batch size and its reasons.

    A step has about as many voxels whatever the patch: small batches take more steps in the same time.
    """
    if overrides.batch_size is not None:
        return overrides.batch_size, [f"batch {overrides.batch_size}: as asked"]
    batch_size = int(np.clip(scale.voxels_per_step // int(np.prod(patch)), *_BATCH_LIMITS))
    reasons = [f"batch {batch_size}: about {scale.voxels_per_step // 1000} thousand voxels a step"]
    if device.memory_bytes:
        fits = max(1, int(device.memory_bytes * _MEMORY_SHARE / bytes_per_patch))
        if fits < batch_size:
            batch_size = fits
            reasons.append(f"batch {batch_size}: more would not fit into {device.memory_bytes / 1e9:.1f} GB")
    return batch_size, reasons


def _training_bytes(name: str, voxels: int, widths: Sequence[int], strides: Sequence[Sequence[int]]) -> int:
    """Return the bytes that training keeps per patch of *voxels*, at two bytes a number."""
    total, here = 0.0, float(voxels)
    for width, stride in zip(widths, [*strides, (1,)], strict=True):
        total += here * width * NETWORKS[name].training_maps * 2
        here /= math.prod(stride)
    return int(total)


def _steps_per_epoch(
    training: Sequence[CaseRecord],
    validation: Sequence[CaseRecord],
    dims: int,
    patch: tuple[int, int, int],
    batch_size: int,
    overrides: PlanOverrides,
) -> tuple[int, str]:
    """Return the steps of an epoch and the reason: about once through the cases, and more where validation is long."""
    if overrides.steps_per_epoch is not None:
        return overrides.steps_per_epoch, ""
    per_case = [np.prod(np.maximum(1, np.array(case.shape) / patch)) for case in training]
    patches = int(sum(case.shape[0] for case in training) if dims == 2 else sum(per_case))
    once = int(np.clip(-(-patches // batch_size), *_STEPS_LIMITS))
    validated = sum(int(np.prod(case.shape)) for case in validation)
    rare = min(_MAX_STEPS, int(_TRAINED_PER_VALIDATED * validated / (batch_size * int(np.prod(patch)))))
    steps = max(once, rare)
    why = counted(patches, "slice") if dims == 2 else f"{patches} patch{'' if patches == 1 else 'es'}"
    if rare > once:
        why += ", and validation should take little of the time"
    return steps, f"{counted(steps, 'step')} an epoch: {why}"


def _median_spacing(cases: Sequence[CaseRecord]) -> tuple[float, float, float] | None:
    spacings = [case.spacing_mm for case in cases if case.spacing_mm is not None]
    if not spacings:
        return None
    z, y, x = np.median(spacings, axis=0)
    return (float(z), float(y), float(x))


def _lesion_diameter(cases: Sequence[CaseRecord]) -> float:
    """Return the diameter in voxels of spheres as large as the lesions; 19 of 20 are no larger."""
    sizes = [voxels for case in cases for voxels in case.lesion_voxels]
    diameters = np.cbrt(np.multiply(sizes, 6 / math.pi))
    return float(np.percentile(diameters, _SMALL_LESION_PERCENTILE)) if sizes else math.inf


def _foreground_share(cases: Sequence[CaseRecord]) -> float:
    voxels = sum(int(np.prod(case.shape)) for case in cases)
    foreground = sum(sum(case.lesion_voxels) for case in cases) / max(1, voxels)
    return float(np.clip(foreground, *_PRIOR_LIMITS)) if foreground else _DEFAULT_PRIOR
