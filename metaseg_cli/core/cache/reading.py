"""Reading a prepared folder, a slice or a patch at a time."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  makes LZ4 known to h5py
import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.cache.origin import CaseOrigin, read_origin
from metaseg_cli.core.cache.records import LISTING_FILE, PATIENT_KEY, SCHEMA, SHARDS, CaseRecord
from metaseg_cli.core.cache.seal import check_seal
from metaseg_cli.core.descriptors import columns
from metaseg_cli.core.images import shown_channel
from metaseg_cli.core.paths import check_openable, path_exists
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.core.typed_json import build, read_json
from metaseg_cli.errors import InputError, Problem, decoding, printable

_AGAIN = "run metaseg prepare again"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared folder opened for reading. Shard files open lazily, in the process that reads them."""

    folder: Path
    kind: str
    preprocessing: Preprocessing
    sequences: tuple[str, ...]
    file_channels: tuple[str, ...]  # what the channels of one file hold, where cases are files of several channels
    regions: dict[str, tuple[int, ...]]
    folds: int
    dataset_id: str
    fingerprint: dict[str, Any]
    cases: tuple[CaseRecord, ...]
    patient_key: str = field(default="", repr=False)  # of the hashes of patients in model files; empty if missing
    _open: dict[tuple[int, str], h5py.File] = field(default_factory=dict, init=False, repr=False, compare=False)

    def _group(self, record: CaseRecord) -> h5py.Group:
        # The key holds the process: a handle that was inherited by a fork belongs to the parent.
        key = (os.getpid(), record.shard)
        if key not in self._open:
            path = self.folder / SHARDS / record.shard
            check_openable(path)
            with decoding(path, "the cache cannot be read", remedy=_AGAIN):
                check_seal(path, _AGAIN)
                self._open[key] = h5py.File(path, "r", rdcc_nbytes=0)
        with decoding(self.folder / SHARDS / record.shard, "the cache is damaged", remedy=_AGAIN):
            return self._open[key][record.case]

    def _read(self, record: CaseRecord, name: str, index: Any, kind: type[np.generic], ndim: int) -> NDArray[Any]:
        """Return a part of a case's array *name*, of the type and shape that prepare writes. Raises InputError."""
        path = self.folder / SHARDS / record.shard
        with decoding(path, "the cache is damaged", remedy=_AGAIN):
            dataset = self._group(record)[name]
            z, y, x = record.shape
            whole = {"image": (z, len(self.sequences), y, x), "label": (z, y, x)}.get(name)
            if dataset.dtype != kind or dataset.ndim != ndim or (whole is not None and dataset.shape != whole):
                raise InputError(f"the cache is damaged ({name} of {record.case})", where=path, remedy=_AGAIN)
            values: NDArray[Any] = dataset[index]
        return values

    def image(self, record: CaseRecord, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> NDArray[np.float16]:
        """Return ``(C, Z, Y, X)`` float16 inside *box* (z, y, x); convert with torch: numpy's conversion is slow."""
        z, y, x = box
        return self._read(record, "image", (z, slice(None), y, x), np.float16, 4).swapaxes(0, 1)

    def label(self, record: CaseRecord, box: tuple[slice, slice, slice] = (slice(None),) * 3) -> NDArray[np.uint8]:
        """Return label values ``(Z, Y, X)`` inside *box*."""
        return self._read(record, "label", box, np.uint8, 3)

    def lesion_points(self, record: CaseRecord) -> NDArray[np.int32]:
        """Return ``(m, 4)``: lesion number, z, y, x of sampled lesion voxels."""
        points = self._read(record, "lesions/points", slice(None), np.int32, 2)
        shape = np.array(record.shape)
        if points.shape[1:] != (4,) or (points < 0).any() or (points[:, 1:] >= shape).any():
            raise InputError(
                f"the cache is damaged (lesions of {record.case})", where=self.folder / SHARDS, remedy=_AGAIN
            )
        return points

    @property
    def per_slice(self) -> bool:
        """Whether ``predict`` will meet each slice by itself: its lesions are then components of single slices."""
        return all(record.per_slice for record in self.cases)

    def smallest_lesions(self, records: Sequence[CaseRecord]) -> dict[str, float]:
        """Return the size of the smallest lesion of each region in *records*, in the unit of ``Postprocessing``."""
        smallest: dict[str, float] = {}
        for record in records:
            if record.per_slice == self.per_slice:  # else a slice among volumes, whose lesions have no volume
                for region, size in record.smallest_lesions.items():
                    smallest[region] = min(size, smallest.get(region, size))
        return smallest

    def descriptors(self, record: CaseRecord) -> NDArray[np.float32]:
        """Return ``(S, K)`` as ``descriptors.describe`` does; no row in a shard of an older version."""
        length = max(part.stop for part in columns(self.sequences).values())
        if "descriptors" not in self._group(record):
            return np.zeros((0, length), np.float32)
        rows = self._read(record, "descriptors", slice(None), np.float32, 2)
        return rows if rows.shape[1] == length else np.zeros((0, length), np.float32)

    def cropped_spacing_mm(self, record: CaseRecord) -> tuple[float, float, float] | None:
        """Return the voxel size ``(z, y, x)`` before resampling; None if unknown, as in shards of older versions."""
        with decoding(self.folder / SHARDS / record.shard, "the cache is damaged", remedy=_AGAIN):
            values = self._group(record).attrs.get("cropped_spacing_mm", ())
            if len(values) != 3 or not all(0 < float(value) < math.inf for value in values):
                return None
            z, y, x = (float(value) for value in values)
        return (z, y, x)

    def available(self, record: CaseRecord) -> NDArray[np.bool_]:
        """Return the modality availability ``(C,)``: which of ``sequences`` the case has; the others are 0."""
        return np.isin(self.sequences, record.sequences)

    def origin(self, record: CaseRecord) -> CaseOrigin | Problem:
        """Return the files that the case was made of; a Problem where the folder does not say it."""
        attributes = self._group(record).attrs
        with decoding(self.folder / SHARDS / record.shard, "the cache is damaged", remedy=_AGAIN):
            return read_origin(attributes, record)

    def shown(self, record: CaseRecord, image: NDArray[Any]) -> NDArray[Any]:
        """Return what people look at of the *image* ``(C, …)``: colours, or one available sequence ``(1, …)``."""
        if self.kind != "volumes":
            return image
        there = np.flatnonzero(self.available(record))
        channel = there[shown_channel([self.sequences[i] for i in there])]
        return image[channel : channel + 1]

    def in_fold(self, fold: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
        """Return training and validation cases of *fold*; cases of a test folder are in neither."""
        usable = [r for r in self.cases if r.labelled and r.split != "test"]
        return [r for r in usable if r.fold != fold], [r for r in usable if r.fold == fold]


def open_prepared(folder: Path) -> Prepared:
    """Read ``dataset.json`` of a prepared folder. Raises InputError when it is not one or of another version."""
    path = folder / LISTING_FILE
    if not path.is_file():
        raise InputError("this is not a prepared folder", where=folder, remedy="run metaseg prepare RAW first")
    listing = read_json(path, remedy=_AGAIN)
    if listing.get("schema") != SCHEMA:
        raise InputError(
            f"schema version {printable(listing.get('schema'))[:20]}, this program reads {SCHEMA}",
            where=path,
            remedy=_AGAIN,
        )
    with decoding(path, "not what metaseg prepare writes", remedy=_AGAIN):
        prepared = build(Prepared, {**listing, "dataset_id": listing.get("id"), "folder": ".", "patient_key": ""})
        _check_plausible(prepared)
    return dataclasses.replace(prepared, folder=folder, patient_key=read_patient_key(folder))


def read_patient_key(folder: Path) -> str:
    """Return the folder's key for hashes of patients, hexadecimal; empty where there is none.

    It is a separate file, so that the rest of the folder is the same whenever it is prepared. Its permissions are
    those of the other files, which hold the names. Raises InputError for a damaged one.
    """
    path = folder / PATIENT_KEY
    if not path_exists(path):
        return ""
    check_openable(path)
    with decoding(path, remedy="restore or remove it, and run metaseg prepare again"):
        key = path.read_text(encoding="ascii").strip()
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ValueError("not a key")
    return key


def _check_plausible(prepared: Prepared) -> None:
    """Raise ValueError for a listing that prepare does not write."""
    for case in prepared.cases:
        if case.shard != Path(case.shard).name or min(case.shape) < 1 or max(case.shape) > 2**20:
            raise ValueError(f"case {printable(case.case)[:40]}: shard or shape")
        if case.spacing_mm is not None and min(case.spacing_mm) <= 0:
            raise ValueError(f"case {printable(case.case)[:40]}: spacing")
        if case.fold is not None and not 0 <= case.fold < prepared.folds:
            raise ValueError(f"case {printable(case.case)[:40]}: fold {case.fold} of {prepared.folds}")
        if not set(case.sequences) <= set(prepared.sequences):
            raise ValueError(f"case {printable(case.case)[:40]}: sequences")
    if not 1 <= prepared.folds <= max(1, len(prepared.cases)) or not prepared.sequences or not prepared.regions:
        raise ValueError("folds, sequences or regions")
    if len({case.case for case in prepared.cases}) < len(prepared.cases):
        raise ValueError("two cases of one name")
