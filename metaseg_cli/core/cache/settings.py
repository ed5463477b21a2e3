"""What all cases look like in the cache: decided once, from what was found, before any case is read."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.cache.records import LISTING_FILE, CacheSettings
from metaseg_cli.core.datasets import FoundCases, in_order, sequence_name
from metaseg_cli.core.images import Volume, channels_are_equal, read_geometry, read_image, reorient, to_canonical
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.errors import ConfigError, InputError, Problem, attempt

Spacing = tuple[float, float, float]
_SAMPLED_PICTURES = 32  # opened to tell grey from colour before anything is written
_KEPT_SPACING = 0.1  # how far, relatively, new cases may move the median before all cases are resampled again


@dataclass(frozen=True, kw_only=True)
class ChosenSettings:
    """The settings of the cache, the cases that have any of the chosen sequences, and what was assumed."""

    settings: CacheSettings
    found: FoundCases
    notes: list[str]


def choose_settings(found: FoundCases, config: PrepareConfig) -> ChosenSettings:
    """Decide between pictures and volumes, their sequences, and the grid of volumes.

    Raises ConfigError for a sequence that no case has, InputError for pictures and volumes in one folder.
    """
    regions = config.regions()
    foreground = tuple(sorted({v for values in regions.values() for v in values})) if all(regions.values()) else ()
    present = {c for case in found.cases for c in (case.channels or case.sequences)}
    chosen = _chosen_sequences(config, present)
    if _is_pictures(found, config.raw):
        settings, notes = _settings_of_pictures(found, in_order(chosen or present), foreground)
        return ChosenSettings(settings=dataclasses.replace(settings, regions=regions), found=found, notes=notes)
    if chosen:
        found = _with_any_of(chosen, found)
    settings = _settings_of_volumes(found, in_order(chosen or present), foreground, config)
    return ChosenSettings(settings=dataclasses.replace(settings, regions=regions), found=found, notes=[])


def file_channels(found: FoundCases, settings: CacheSettings) -> tuple[str, ...]:
    """Return what the channels of one file hold: named by the layout, else in their own order."""
    named = next((case.channels for case in found.cases if case.channels), ())
    every = {name for case in found.cases for name in case.sequences}
    return named or (() if set(settings.sequences) <= every else settings.sequences)


def settings_record(config: PrepareConfig) -> dict[str, Any]:
    """Return the settings for ``dataset.json``; of a pseudonymised folder without paths, which may name patients."""
    plain = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if not config.pseudonymise:
        return plain
    return plain | dict.fromkeys(("raw", "out", "manifest", "cluster"))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _chosen_sequences(config: PrepareConfig, present: set[str]) -> set[str]:
    chosen = {sequence_name(name) for name in config.chosen_sequences()}
    if chosen - present:
        raise ConfigError(
            f"--sequences: {', '.join(sorted(chosen - present))} is not there",
            remedy=f"the folder has {', '.join(in_order(present))}",
        )
    return chosen


def _is_pictures(found: FoundCases, raw: Path) -> bool:
    pictures = sum(case.slices for case in found.cases)
    volumes = len(found.cases) - pictures
    if pictures and volumes:
        raise InputError(
            f"pictures ({pictures} cases) and volumes ({volumes} cases) in one folder",
            where=raw,
            remedy="prepare them apart",
        )
    return not volumes


def _with_any_of(chosen: set[str], found: FoundCases) -> FoundCases:
    kept = tuple(c for c in found.cases if set(c.channels or c.sequences) & chosen)
    excluded = len(found.cases) - len(kept)
    notes = [f"{excluded} cases have none of the sequences asked for"] if excluded else []
    return dataclasses.replace(found, cases=kept, notes=(*found.notes, *notes))


# -- pictures --------------------------------------------------------------------------------------------------------


def _settings_of_pictures(
    found: FoundCases, names: tuple[str, ...], foreground: tuple[int, ...]
) -> tuple[CacheSettings, list[str]]:
    """Decide between grey and colour, by a few files spread over the folder."""
    channels: list[int] = []
    grey = True
    for image in _sampled_pictures(found):
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


def _sampled_pictures(found: FoundCases) -> Iterator[Volume]:
    """Yield pictures spread over the folder. Unreadable ones are skipped: they are reported when their case is read."""
    files = [file for case in found.cases for files in case.sequences.values() for file in files]
    for i in np.unique(np.linspace(0, len(files) - 1, _SAMPLED_PICTURES).astype(int)):
        image = attempt(partial(read_image, files[i]), files[i], None)
        if not isinstance(image, Problem):
            yield image


# -- volumes ---------------------------------------------------------------------------------------------------------


def _settings_of_volumes(
    found: FoundCases, sequences: tuple[str, ...], foreground: tuple[int, ...], config: PrepareConfig
) -> CacheSettings:
    spacing, channels = _grid_of_volumes(found, config)
    if len(sequences) == 1 and channels > 1 and not found.cases[0].channels:
        sequences = tuple(f"{sequences[0]}_{i}" for i in range(channels))
    return CacheSettings(
        kind="volumes",
        preprocessing=Preprocessing(normalisation="case", oriented=True, spacing_mm=spacing),
        sequences=sequences,
        foreground=foreground,
        structures=config.structure_names(),
    )


def _grid_of_volumes(found: FoundCases, config: PrepareConfig) -> tuple[Spacing | None, int]:
    """Return the voxel size (z, y, x) that all volumes get, None for their own; and the channels of the first file."""
    channels = 1
    spacings: list[Spacing] = []
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
    return _earlier_spacing(config, (z, y, x)) or (z, y, x), channels


def _earlier_spacing(config: PrepareConfig, median: Spacing) -> Spacing | None:
    """Return the automatic voxel size of an earlier run, where new cases have hardly moved the median."""
    path = config.out / LISTING_FILE
    if not path.is_file():
        return None
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        before = tuple(listing["preprocessing"]["spacing_mm"])
        auto = listing["settings"]["spacing"] == "auto"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    near = len(before) == 3 and all(abs(a / b - 1) <= _KEPT_SPACING for a, b in zip(before, median, strict=True))
    return (before[0], before[1], before[2]) if auto and near else None
