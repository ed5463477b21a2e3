"""What to train on this data and this device: dimensions, patch, batch, depth; each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.choices import DEFAULT_WIDTHS, NETWORKS, network_name
from metaseg_cli.errors import ConfigError

# One voxel in this many is foreground when the plan knows nothing (Lin et al. 2017).
_PRIOR = 0.01
_SMALLEST_MAP = 4  # no pooling to fewer voxels per axis
_SLICES_FOR_3D = 16
_COARSE = 3.0  # slices thicker than this many in-plane voxels are no third dimension to convolve over
_WIDEST_3D = 320  # in 3D the deepest levels see few voxels; wider ones cost more than they learn
# Small steps learn more per minute on a processor; a GPU wants to be filled.
_PATCH = {("cpu", 2): 160, ("cpu", 3): 64, ("gpu", 2): 512, ("gpu", 3): 128}
_VOXELS = {("cpu", 2): 8 * 160**2, ("cpu", 3): 2 * 64**3, ("gpu", 2): 32 * 256**2, ("gpu", 3): 2 * 128**3}
# Where lesions are this small, or the network is slow, a processor learns more from many steps of a narrower network:
# measured.
_NARROW_WIDTHS = tuple(w // 2 for w in DEFAULT_WIDTHS)
_SMALL_LESION = 8.0  # voxels across
_SMALL_PATCH, _SMALL_VOXELS = 32, 4 * 32**3
_MEMORY_SHARE = 0.7
_VALIDATION_STEPS = 10  # voxels to learn from for each one that is validated
_LONGEST_EPOCH = 1000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan must know of the device. *memory_bytes* is what is free, None when unknown."""

    gpu: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Numbers that the user wants otherwise; None and () leave them to the plan."""

    dims: int | None = None
    context: int | None = None
    patch: tuple[int, ...] = ()
    batch_size: int | None = None
    widths: tuple[int, ...] = ()
    iterations_per_epoch: int | None = None
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
    iterations_per_epoch: int
    foreground_prior: float = _PRIOR
    memory_bytes: int = 0  # what a step is estimated to need
    reasons: tuple[str, ...] = field(default=())


def make_plan(
    prepared: Prepared,
    cases: Sequence[CaseRecord],
    validation: Sequence[CaseRecord] = (),
    *,
    model: str,
    machine: Machine | None = None,
    wishes: Wishes,
) -> Plan:
    """Decide for training *cases* of *prepared*. The same input gives the same plan. Raises ConfigError."""
    name = network_name(model)
    machine = machine or Machine()
    kind = "gpu" if machine.gpu else "cpu"
    reasons: list[str] = []
    shape = np.median([case.shape for case in cases], axis=0)
    spacing = _median_spacing(cases)
    coarse = spacing is not None and spacing[0] > _COARSE * min(spacing[1:])
    dims, context = _dimensions(prepared, shape, spacing, coarse, wishes, reasons)

    given, largest, voxels_a_step = wishes.widths or DEFAULT_WIDTHS, _PATCH[kind, dims], _VOXELS[kind, dims]
    across = _lesion_diameter(cases)
    if kind == "cpu" and dims == 3 and across <= _SMALL_LESION:
        given, largest, voxels_a_step = wishes.widths or _NARROW_WIDTHS, _SMALL_PATCH, _SMALL_VOXELS
        reasons.append(f"lesions of up to {across:.0f} voxels: small patches and narrow levels, for more steps")
    elif kind == "cpu" and dims == 2 and NETWORKS[name].narrow_on_cpu and not wishes.widths:
        given = _NARROW_WIDTHS
        reasons.append(f"{name} on a processor: narrow levels, for twice as many steps")
    if not wishes.widths and dims == 3:
        given = tuple(min(w, _WIDEST_3D) for w in given)
    patch = _patch(shape, dims, wishes.patch, largest, len(given) - 1)
    reasons.append(f"patch {_times(patch[-dims:])}: {'as asked' if wishes.patch else f'median case {_times(shape)}'}")
    strides = _strides(patch[-dims:], spacing[-dims:] if spacing else None, len(given) - 1)
    widths = given[: len(strides) + 1]
    if wishes.widths and len(widths) < len(given):
        raise ConfigError(
            f"{len(given)} widths are too many for a patch of {_times(patch)}", remedy="name fewer widths"
        )
    smallest = np.array(patch[-dims:]) // np.prod(strides, axis=0)
    reasons.append(
        f"{len(widths)} levels of {', '.join(map(str, widths))} channels: down to {_times(smallest)}"
        + ("" if len({s for step in strides for s in step}) == 1 else ", the coarse axis pooled last")
    )

    voxels = int(np.prod(patch))
    if wishes.batch_size is not None:
        batch_size = wishes.batch_size
        reasons.append(f"batch {batch_size}: as asked")
    else:
        # About as many voxels per step whatever the patch: small batches take more steps in the same time.
        batch_size = int(np.clip(voxels_a_step // voxels, 2, 64))
        reasons.append(f"batch {batch_size}: about {voxels_a_step // 1000} thousand voxels a step")
    per_patch = _memory(name, voxels, widths, strides)
    if machine.memory_bytes and wishes.batch_size is None:
        fits = max(1, int(machine.memory_bytes * _MEMORY_SHARE / per_patch))
        if fits < batch_size:
            batch_size = fits
            reasons.append(f"batch {batch_size}: more would not fit into {machine.memory_bytes / 1e9:.1f} GB")
    reasons.append(f"about {batch_size * per_patch / 1e9:.1f} GB of memory for a step")

    iterations = wishes.iterations_per_epoch
    if iterations is None:
        per_case = [np.prod(np.maximum(1, np.array(case.shape) / patch)) for case in cases]
        patches = int(sum(case.shape[0] for case in cases) if dims == 2 else sum(per_case))
        # Looking at a voxel costs a third of learning from it, and most are looked at twice: with the search for
        # mistakes in training cases, a validation takes a tenth of its epoch.
        looked_at = sum(int(np.prod(case.shape)) for case in validation)
        quiet = min(_LONGEST_EPOCH, int(_VALIDATION_STEPS * looked_at / (batch_size * voxels)))
        once = int(np.clip(-(-patches // batch_size), 10, 250))
        iterations = max(once, quiet)
        why = f"{patches} {'slices' if dims == 2 else 'patches'}"
        if quiet > once:
            why += ", and validation should take little of the time"
        reasons.append(f"{iterations} steps an epoch: {why}")
    prior = wishes.foreground_prior or _prior(cases)
    reasons.append(f"prior {prior:.4f}: {'as asked' if wishes.foreground_prior else 'share of foreground voxels'}")
    return Plan(
        dims=dims,
        context=context,
        patch=patch,
        batch_size=batch_size,
        widths=widths,
        strides=strides,
        iterations_per_epoch=iterations,
        foreground_prior=prior,
        memory_bytes=batch_size * per_patch,
        reasons=tuple(reasons),
    )


def _dimensions(
    prepared: Prepared,
    shape: np.ndarray,
    spacing: tuple[float, float, float] | None,
    coarse: bool,
    wishes: Wishes,
    reasons: list[str],
) -> tuple[int, int]:
    depth = int(shape[0])
    dims = wishes.dims
    if dims is None:
        dims = 3 if prepared.kind == "volumes" and depth >= _SLICES_FOR_3D and not coarse else 2
    # A picture is often predicted alone: what has learnt to look at its neighbours would miss them.
    context = wishes.context
    if context is None:
        context = 1 if dims == 2 and prepared.kind == "volumes" and depth > 1 else 0
    if dims == 3 and context:
        raise ConfigError("--context is for 2D networks", remedy="leave it out, or take --dims 2")
    what = f"{prepared.kind} of {depth} slice{'' if depth == 1 else 's'} (median)"
    if coarse and spacing is not None:
        what += f", {spacing[0]:.1f} mm thick against {min(spacing[1:]):.1f} mm in plane"
    label = "2.5D" if context else f"{dims}D"
    asked = " (as asked)" if wishes.dims is not None or wishes.context is not None else ""
    reasons.append(f"{label}{asked}: {what}" + (f"; neighbour slices on each side: {context}" if context else ""))
    return dims, context


def _median_spacing(cases: Sequence[CaseRecord]) -> tuple[float, float, float] | None:
    spacings = [case.spacing_mm for case in cases if case.spacing_mm is not None]
    if not spacings:
        return None
    z, y, x = np.median(spacings, axis=0)
    return (float(z), float(y), float(x))


def _patch(shape: np.ndarray, dims: int, given: Sequence[int], most: int, most_halvings: int) -> tuple[int, int, int]:
    if given:
        full = tuple(given) * dims if len(given) == 1 else tuple(given)
        if len(full) != dims:
            raise ConfigError(f"a {dims}D patch has {dims} sizes, got {tuple(given)}")
        return (1, full[0], full[1]) if dims == 2 else (full[0], full[1], full[2])

    def fitted(length: float) -> int:
        # No larger than the case, but for what the poolings must divide by.
        halvings = int(np.clip(math.log2(max(length, 1) / _SMALLEST_MAP), 1, most_halvings))
        return int(min(most, -(-length // 2**halvings) * 2**halvings))

    z, y, x = (fitted(n) for n in shape)
    return (1 if dims == 2 else z, y, x)


def _strides(patch: Sequence[int], spacing: Sequence[float] | None, most: int) -> tuple[tuple[int, ...], ...]:
    """Halve each axis while it stays at least 4 voxels long, at most *most* times.

    An axis that is more than twice as coarse as the finest waits until the others have caught up.
    """
    size = list(patch)
    now = list(spacing) if spacing is not None else [1.0] * len(size)
    strides: list[tuple[int, ...]] = []
    while len(strides) < most:
        able = [n // 2 >= _SMALLEST_MAP for n in size]
        if not any(able):
            break
        finest = min(s for s, a in zip(now, able, strict=True) if a)
        step = tuple(2 if a and s <= 2 * finest else 1 for a, s in zip(able, now, strict=True))
        strides.append(step)
        size = [n // s for n, s in zip(size, step, strict=True)]
        now = [n * s for n, s in zip(now, step, strict=True)]
    if not strides:
        raise ConfigError(f"a patch of {_times(patch)} is too small for a U-Net", remedy="use larger images")
    return tuple(strides)


def _memory(name: str, voxels: int, widths: Sequence[int], strides: Sequence[Sequence[int]]) -> int:
    """Bytes that training keeps per patch, at two bytes a number."""
    total, left = 0.0, float(voxels)
    for width, stride in zip(widths, [*strides, (1,)], strict=True):
        total += left * width * NETWORKS[name].training_maps * 2
        left /= math.prod(stride)
    return int(total)


def _lesion_diameter(cases: Sequence[CaseRecord]) -> float:
    """In voxels, of spheres as large as the lesions; 19 of 20 are no larger."""
    sizes = [voxels for case in cases for voxels in case.lesion_voxels]
    return float(np.percentile(np.cbrt(np.multiply(sizes, 6 / math.pi)), 95)) if sizes else math.inf


def _prior(cases: Sequence[CaseRecord]) -> float:
    voxels = sum(int(np.prod(case.shape)) for case in cases)
    foreground = sum(sum(case.lesion_voxels) for case in cases) / max(1, voxels)
    return float(np.clip(foreground, 1e-4, 0.2)) if foreground else _PRIOR


def _times(sizes: Iterable[float]) -> str:
    return "×".join(str(int(size)) for size in sizes)
