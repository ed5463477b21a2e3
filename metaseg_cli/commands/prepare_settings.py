"""What all cases shall look like in the cache, decided from what was found before any of them is read."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import partial

import numpy as np

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.cache import CacheSettings
from metaseg_cli.core.datasets import FoundCases, in_order, sequence_name
from metaseg_cli.core.images import channels_are_equal, read_geometry, read_image, reorient, to_canonical
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.errors import ConfigError, InputError, Problem, attempt

_LOOKED_AT = 32  # pictures opened to tell grey from colour before anything is written
_KEPT_SPACING = 0.1  # how far new cases may move the median before all cases are resampled anew


def settings_for(found: FoundCases, config: PrepareConfig) -> tuple[CacheSettings, list[str], FoundCases]:
    """Pictures or volumes, their sequences, and the grid of the volumes: decided once, for all cases."""
    regions = config.regions()
    foreground = sorted({value for values in regions.values() for value in values}) if all(regions.values()) else []
    names = {c for case in found.cases for c in (case.channels or case.sequences)}
    chosen = {sequence_name(name) for name in config.chosen_sequences()}
    if chosen - names:
        raise ConfigError(
            f"--sequences: {', '.join(sorted(chosen - names))} is not there",
            remedy=f"the folder has {', '.join(in_order(names))}",
        )
    slices = [case.slices for case in found.cases]
    if any(slices) and not all(slices):
        kinds = Counter("pictures" if s else "volumes" for s in slices)
        raise InputError(
            f"pictures ({kinds['pictures']} cases) and volumes ({kinds['volumes']} cases) in one folder",
            where=config.raw,
            remedy="prepare them apart",
        )
    if all(slices):
        settings, notes = _settings_of_pictures(found, in_order(chosen or names), tuple(foreground))
        return settings, notes, found
    if chosen:
        kept = [c for c in found.cases if set(c.channels or c.sequences) & chosen]
        left = len(found.cases) - len(kept)
        found = dataclasses.replace(
            found,
            cases=tuple(kept),
            notes=(*found.notes, *([f"{left} cases have none of the sequences asked for"] if left else [])),
        )
    sequences = in_order(chosen or names)
    spacing, channels = _grid_of_volumes(found, config)
    if len(sequences) == 1 and channels > 1 and not found.cases[0].channels:
        sequences = tuple(f"{sequences[0]}_{i}" for i in range(channels))
    settings = CacheSettings(
        kind="volumes",
        preprocessing=Preprocessing(normalisation="case", oriented=True, spacing_mm=spacing),
        sequences=sequences,
        foreground=tuple(foreground),
        structures=config.structure_names(),
    )
    return settings, [], found


def file_channels(found: FoundCases, settings: CacheSettings) -> tuple[str, ...]:
    """What the channels of one file hold: by the layout's word, or in their own order where nothing names them."""
    named = next((case.channels for case in found.cases if case.channels), ())
    every = {name for case in found.cases for name in case.sequences}
    return named or (() if set(settings.sequences) <= every else settings.sequences)


def _settings_of_pictures(
    found: FoundCases, names: tuple[str, ...], foreground: tuple[int, ...]
) -> tuple[CacheSettings, list[str]]:
    """Grey or colour, by a few files spread over the folder."""
    images = [file for case in found.cases for files in case.sequences.values() for file in files]
    channels: list[int] = []
    grey = True
    for i in np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int)):
        image = attempt(partial(read_image, images[i]), images[i], None)
        if isinstance(image, Problem):
            continue  # reported when its case is read
        channels.append(image.array.shape[0])
        grey = grey and channels_are_equal(image)
    count = Counter(channels).most_common(1)[0][0] if channels else 1
    notes: list[str] = []
    sequences = names
    if len(names) == 1 and grey:
        sequences = ("grey",)
        if count == 3:
            notes.append("the pictures are grey but saved in colour: read as one channel")
    elif len(names) == 1 and count == 3:
        sequences = ("red", "green", "blue")
        notes.append("pictures in colour: red, green and blue are three sequences")
    settings = CacheSettings(
        kind="pictures",
        preprocessing=Preprocessing(normalisation="slice"),
        sequences=sequences,
        grey=grey,
        foreground=foreground,
    )
    return settings, notes


def _grid_of_volumes(found: FoundCases, config: PrepareConfig) -> tuple[tuple[float, float, float] | None, int]:
    """The voxel size (z, y, x) that all volumes get, None for their own; and the channels of the first file."""
    channels = 1
    spacings: list[tuple[float, float, float]] = []
    for case in found.cases:
        if spacings and config.spacing != "auto":
            break
        grid = attempt(partial(read_geometry, next(iter(case.sequences.values()))), case.first_file, None)
        if isinstance(grid, Problem):
            continue  # reported when its case is read
        if not spacings:
            channels = grid.array.shape[0]
        if grid.spacing_mm is not None:
            spacing = reorient(grid, to_canonical(grid)).spacing_mm
            spacings.append(spacing or grid.spacing_mm)
    if config.spacing != "auto" or not spacings:
        return config.spacing_mm(), channels
    z, y, x = (round(float(s), 4) for s in np.median(spacings, axis=0))
    return _spacing_before(config, (z, y, x)) or (z, y, x), channels


def _spacing_before(config: PrepareConfig, now: tuple[float, float, float]) -> tuple[float, float, float] | None:
    """The voxel size of an earlier run of auto, where a few new cases have hardly moved the median."""
    path = config.out / "dataset.json"
    if not path.is_file():
        return None
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        was = tuple(listing["preprocessing"]["spacing_mm"])
        auto = listing["settings"]["spacing"] == "auto"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    near = len(was) == 3 and all(abs(a / b - 1) <= _KEPT_SPACING for a, b in zip(was, now, strict=True))
    return (was[0], was[1], was[2]) if auto and near else None
