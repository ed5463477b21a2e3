"""Masks whose segments overlap, as regions: by the names of the segments, or else by their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.volume import NamedSegment, Volume
from metaseg_cli.core.label_maps import region_masks, to_label_map
from metaseg_cli.core.regions import belongs, names_decide


@dataclass(frozen=True, kw_only=True)
class RegionLayers:
    """A mask split into regions: ``masks`` is ``(R, Z, Y, X)``.

    ``by_name`` says that the names of segments decided; ``others`` names what belongs to no region.
    """

    masks: NDArray[np.bool_]
    by_name: bool
    others: tuple[str, ...]


def split_regions(mask: Volume, regions: Mapping[str, tuple[int, ...]]) -> RegionLayers:
    """Return the regions of a mask ``(L, Z, Y, X)``.

    Where its segments' names say which region each belongs to, they decide (see ``regions.names_decide``), else the
    label values of the regions.
    """
    array = mask.array
    if not names_decide([segment.name for segment in mask.segments], regions):
        by_value = [(np.isin(array, values) if values else array != 0).any(axis=0) for values in regions.values()]
        owned = {value for values in regions.values() for value in values}
        known = owned if all(regions.values()) else set(range(256))
        others = tuple(f"label {value}" for value in np.unique(array).tolist() if value and value not in known)
        return RegionLayers(masks=np.stack(by_value), by_name=False, others=others)
    masks = np.zeros((len(regions), *mask.shape), bool)
    for (name, values), region in zip(regions.items(), masks, strict=True):
        for segment in mask.segments:
            if not values or belongs(segment.name, name):
                np.logical_or(region, _voxels(array, segment), out=region)
    others = tuple(
        f"segment {segment.name}"
        for segment in mask.segments
        if not any(not values or belongs(segment.name, name) for name, values in regions.items())
    )
    return RegionLayers(masks=masks, by_name=True, others=others)


def _voxels(array: NDArray[np.uint8], segment: NamedSegment) -> NDArray[np.bool_]:
    if segment.layer is not None:
        return np.asarray(array[segment.layer] == segment.value)
    return np.asarray((array == segment.value).any(axis=0))


def flatten(masks: Sequence[Volume], regions: Mapping[str, tuple[int, ...]]) -> tuple[NDArray[np.uint8], list[str]]:
    """Unite the masks of one image, on one grid, into a label map ``(Z, Y, X)``; also return notes on what was lost.

    Segments that are named like the regions get the labels of their regions. Otherwise labels stay as they are: of
    several masks the first one's, of overlapping segments that of the smaller one.
    """
    split = [split_regions(mask, regions) for mask in masks]
    if not any(each.by_name for each in split):
        label = _painted(masks[0].array)
        for mask in masks[1:]:
            label = np.where(label > 0, label, _painted(mask.array))
        overlapping = any((np.count_nonzero(mask.array, axis=0) > 1).any() for mask in masks)
        return label, ["segments overlap: the smaller one was kept where they do"] if overlapping else []
    wanted = np.any([each.masks for each in split], axis=0)
    label = to_label_map(wanted, regions)
    notes = ["segments were assigned to regions by their names"]
    for name, before, after in zip(regions, wanted, region_masks(label, regions), strict=True):
        if lost := int(np.count_nonzero(before != after)):
            notes.append(f"region {name}: {lost} voxels were changed, where segments overlap as no label can say")
    if others := sorted({other for each in split for other in each.others}):
        notes.append(f"in no region, counts as background: {', '.join(others)}")
    return label, notes


def unite_regions(masks: Sequence[Volume], regions: Mapping[str, tuple[int, ...]]) -> NDArray[np.bool_]:
    """Return the regions ``(R, Z, Y, X)`` of the masks of one image, on one grid; overlaps stay, unlike in flatten."""
    split = [split_regions(mask, regions) for mask in masks]
    if len(split) == 1 or any(each.by_name for each in split):
        return np.any([each.masks for each in split], axis=0)
    return region_masks(flatten(masks, regions)[0], regions)


def _painted(layers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flatten ``(L, Z, Y, X)`` to ``(Z, Y, X)``: large segments first, smaller ones over them."""
    if len(layers) == 1:
        return layers[0].copy()
    label = np.zeros(layers.shape[1:], np.uint8)
    each = [(layer == value) for layer in layers for value in np.unique(layer).tolist() if value]
    values = [value for layer in layers for value in np.unique(layer).tolist() if value]
    for mask, value in sorted(zip(each, values, strict=True), key=lambda pair: -int(pair[0].sum())):
        label[mask] = value
    return label
