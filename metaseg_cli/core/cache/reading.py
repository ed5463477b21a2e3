"""Reading a prepared folder, a slice or a patch at a time."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  makes LZ4 known to h5py
import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.cache.records import SCHEMA, CaseRecord
from metaseg_cli.core.images import shown_channel
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared folder opened for reading. Shard files open lazily, in the process that reads them."""

    folder: Path
    kind: str
    preprocessing: Preprocessing
    sequences: tuple[str, ...]
    file_channels: tuple[str, ...]  # what the channels of one file were, where cases came as files of several
    regions: dict[str, tuple[int, ...]]
    folds: int
    dataset_id: str
    fingerprint: dict[str, Any]
    cases: tuple[CaseRecord, ...]
    _open: dict[tuple[int, str], h5py.File] = field(default_factory=dict, repr=False, compare=False)

    def _group(self, record: CaseRecord) -> h5py.Group:
        # The key holds the process: a handle that came over with a fork belongs to the parent.
        key = (os.getpid(), record.shard)
        if key not in self._open:
            path = self.folder / "shards" / record.shard
            try:
                self._open[key] = h5py.File(path, "r", rdcc_nbytes=0)
            except OSError as error:
                raise InputError(
                    f"the cache cannot be read ({error})", where=path, remedy="run metaseg prepare again"
                ) from error
        return self._open[key][record.case]

    def image(self, record: CaseRecord, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> NDArray[np.float16]:
        """``(C, Z, Y, X)`` float16 inside *box* (z, y, x); convert with torch, numpy's own conversion is slow."""
        z, y, x = box
        values: NDArray[np.float16] = self._group(record)["image"][z, :, y, x]
        return values.swapaxes(0, 1)

    def label(self, record: CaseRecord, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> NDArray[np.uint8]:
        """``(Z, Y, X)`` label values inside *box*."""
        values: NDArray[np.uint8] = self._group(record)["label"][box]
        return values

    def lesion_points(self, record: CaseRecord) -> NDArray[np.int32]:
        """``(m, 4)``: lesion number, z, y, x of sampled lesion voxels."""
        points: NDArray[np.int32] = self._group(record)["lesions/points"][:]
        return points

    def present(self, record: CaseRecord) -> NDArray[np.bool_]:
        """``(C,)``: which of ``sequences`` the case has; the others are 0 in its image."""
        return np.isin(self.sequences, record.sequences)

    def shown(self, record: CaseRecord, image: NDArray[Any]) -> NDArray[Any]:
        """Of the case's *image* ``(C, …)`` what people look at: colours, or one sequence that is there, ``(1, …)``."""
        if self.kind != "volumes":
            return image
        there = np.flatnonzero(self.present(record))
        channel = there[shown_channel([self.sequences[i] for i in there])]
        return image[channel : channel + 1]

    def in_fold(self, fold: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
        """Training and validation cases of *fold*; cases of a test folder are in neither."""
        usable = [r for r in self.cases if r.labelled and r.split != "test"]
        return [r for r in usable if r.fold != fold], [r for r in usable if r.fold == fold]


def open_prepared(folder: Path) -> Prepared:
    """Read ``dataset.json`` of a prepared folder. Raises InputError when it is not one or of another version."""
    path = folder / "dataset.json"
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            "this is not a prepared folder", where=folder, remedy="run metaseg prepare RAW first"
        ) from None
    except ValueError as error:
        raise InputError(f"broken JSON ({error})", where=path, remedy="run metaseg prepare again") from error
    if listing.get("schema") != SCHEMA:
        raise InputError(
            f"schema version {listing.get('schema')}, this program reads {SCHEMA}",
            where=path,
            remedy="run metaseg prepare again",
        )
    try:
        return _prepared(folder, listing)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"not what metaseg prepare writes ({error})", where=path, remedy="run metaseg prepare again"
        ) from error


def _prepared(folder: Path, listing: dict[str, Any]) -> Prepared:
    return Prepared(
        folder=folder,
        kind=listing["kind"],
        preprocessing=Preprocessing.from_record(listing["preprocessing"]),
        sequences=tuple(listing["sequences"]),
        file_channels=tuple(listing["file_channels"]),
        regions={name: tuple(values) for name, values in listing["regions"].items()},
        folds=listing["folds"],
        dataset_id=listing["id"],
        fingerprint=listing["fingerprint"],
        cases=tuple(CaseRecord.from_record(each) for each in listing["cases"]),
    )


def region_masks(label: NDArray[np.uint8], regions: dict[str, tuple[int, ...]]) -> NDArray[np.bool_]:
    """Label map ``(…)`` → one mask per region ``(R, …)``; a region without values is every non-zero label."""
    member = partial(np.isin, label)
    return np.stack([member(values) if values else label > 0 for values in regions.values()])
