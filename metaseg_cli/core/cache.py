"""The prepared folder: cases normalised once, kept in HDF5, read a slice or a patch at a time.

prepared/dataset.h5     index: ``cases/<id>`` are external links into the shards
prepared/shards/*.h5    the cases; each shard is written by one process and published by rename
prepared/dataset.json   what the folder holds: regions, sequences, fingerprint, folds, settings
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.datasets.case_source import CaseSource, Problem
from metaseg_cli.core.images import Volume, as_grey, read_image, read_mask
from metaseg_cli.core.preprocessing import Normalisation, normalise
from metaseg_cli.errors import InputError

SCHEMA = 1
_POINTS_PER_LESION = 64
_SHARD_BYTES = 16 * 2**20  # of source files; small enough to spread over workers, large enough not to litter
_SHARD_CASES = 64


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Everything that decides what a case looks like in the cache; another value means another cache."""

    kind: str  # "pictures" or "volumes"
    normalisation: Normalisation
    channels: tuple[str, ...]
    grey: bool  # pictures in colour whose channels agree are stored as one channel


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """One case of the prepared folder, as ``dataset.json`` lists it."""

    case: str
    patient: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    lesion_voxels: tuple[int, ...]
    labels: tuple[int, ...]
    content: str  # hash of the source images; recognises a case whatever it is called
    key: str
    shard: str
    labelled: bool = True
    split: str | None = None
    fold: int | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenCase:
    """What a worker reports of one case: its record (None when nothing of it was usable), problems and notes."""

    record: CaseRecord | None
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The cases that one worker puts into one shard."""

    folder: Path
    sources: tuple[CaseSource, ...]
    settings: CacheSettings


# -- writing ---------------------------------------------------------------------------------------------------------


def case_key(source: CaseSource, settings: CacheSettings) -> str:
    """Changes when a file of the case, its order or a setting does."""
    files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in _files(source) if f.exists()]
    identity = [SCHEMA, asdict(settings), source.case, source.patient, files]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def shard_jobs(folder: Path, sources: Sequence[CaseSource], settings: CacheSettings) -> list[ShardJob]:
    """Group *sources* into shards of about 16 MB of files."""
    jobs: list[ShardJob] = []
    group: list[CaseSource] = []
    size = 0
    for source in sources:
        group.append(source)
        size += sum(f.stat().st_size for f in _files(source) if f.exists())
        if size >= _SHARD_BYTES or len(group) >= _SHARD_CASES:
            jobs.append(ShardJob(folder=folder, sources=tuple(group), settings=settings))
            group, size = [], 0
    if group:
        jobs.append(ShardJob(folder=folder, sources=tuple(group), settings=settings))
    return jobs


def write_shard(job: ShardJob) -> list[WrittenCase]:
    """Read, check, normalise and store the cases of *job*; the shard appears whole or not at all."""
    shards = job.folder / "shards"
    name = hashlib.sha256("".join(case_key(s, job.settings) for s in job.sources).encode()).hexdigest()[:16] + ".h5"
    temporary = shards / f".writing-{os.getpid()}-{name}"
    written: list[WrittenCase] = []
    try:
        with h5py.File(temporary, "w") as file:
            for source in job.sources:
                try:
                    written += _write_case(file, source, job.settings, name)
                except InputError as error:
                    where = error.where if isinstance(error.where, Path) else _files(source)[0]
                    problem = Problem(file=where, reason=error.what, remedy=error.remedy)
                    written.append(WrittenCase(record=None, problems=(problem,)))
            empty = len(file) == 0
        if not empty:
            temporary.replace(shards / name)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _write_case(file: h5py.File, source: CaseSource, settings: CacheSettings, shard: str) -> list[WrittenCase]:
    stacks, problems, notes = _read_stacks(source, settings)
    if not stacks:
        return [WrittenCase(record=None, problems=tuple(problems), notes=tuple(notes))]
    results: list[WrittenCase] = []
    for number, stack in enumerate(stacks, start=1):
        case = source.case if number == 1 else f"{source.case}_size{number}"
        image = normalise(stack.image, settings.normalisation)
        lesions = _lesion_index(stack.label)
        content = hashlib.sha256("".join(stack.hashes).encode()).hexdigest()[:16]
        group = file.create_group(case)
        stored = np.ascontiguousarray(image.transpose(1, 0, 2, 3)).astype(np.float16)
        # Whole slices with all their channels as chunks, LZ4 without shuffle: measured, see docs/concepts/cache.md.
        group.create_dataset("image", data=stored, chunks=(1, *stored.shape[1:]), **hdf5plugin.LZ4())
        label = stack.label if stack.label is not None else np.zeros(stack.image.shape[1:], np.uint8)
        group.create_dataset("label", data=label, chunks=(1, *label.shape[1:]), **hdf5plugin.LZ4())
        for field_name, values in lesions.items():
            group.create_dataset(f"lesions/{field_name}", data=values)
        record = CaseRecord(
            case=case,
            patient=source.patient,
            shape=(stored.shape[0], stored.shape[2], stored.shape[3]),
            spacing_mm=stack.geometry.spacing_mm,
            lesion_voxels=tuple(int(v) for v in lesions["voxels"]),
            labels=tuple(int(v) for v in np.unique(label) if v),
            content=content,
            key=case_key(source, settings),
            shard=shard,
            labelled=stack.label is not None,
            split=source.split,
        )
        group.attrs["record"] = json.dumps(asdict(record))
        group.attrs["patient"] = source.patient
        group.attrs["sequences"] = list(settings.channels)
        group.attrs["spacing_mm"] = stack.geometry.spacing_mm or ()
        group.attrs["origin_mm"] = stack.geometry.origin_mm
        group.attrs["direction"] = stack.geometry.direction
        group.attrs["sources"] = json.dumps(stack.files)
        # What was wrong with some of its files stays with the case: a later run that takes it from here says it too.
        said = WrittenCase(record=record, problems=tuple(problems), notes=tuple(notes))
        results.append(said if number == 1 else WrittenCase(record=record))
        group.attrs["problems"] = json.dumps([[str(p.file), p.reason, p.remedy] for p in results[-1].problems])
        group.attrs["notes"] = json.dumps(results[-1].notes)
    return results


@dataclass(frozen=True, kw_only=True)
class _Stack:
    image: NDArray[Any]
    label: NDArray[np.uint8] | None
    geometry: Volume
    hashes: list[str]
    files: list[dict[str, Any]]


def _read_stacks(source: CaseSource, settings: CacheSettings) -> tuple[list[_Stack], list[Problem], list[str]]:
    """The case's slices read and stacked; more than one stack where slices differ in size."""
    problems: list[Problem] = []
    notes: list[str] = []
    by_shape: dict[tuple[int, ...], list[tuple[Volume, Volume | None, list[dict[str, Any]]]]] = {}
    count = len(next(iter(source.sequences.values())))
    for index in range(count):
        paths = [files[index] for files in source.sequences.values()]
        mask_path = source.masks[index] if source.masks else None
        try:
            image = _read_channels(paths, settings)
            mask = read_mask(mask_path) if mask_path is not None else None
            if mask is not None and mask.shape != image.shape:
                raise InputError(
                    f"the mask's size ({_size(mask.shape)}) is not the image's ({_size(image.shape)}: {paths[0].name})",
                    where=mask_path,
                    remedy="give every image a mask on its own grid",
                )
        except InputError as error:
            where = error.where if isinstance(error.where, Path) else paths[0]
            problems.append(Problem(file=where, reason=error.what, remedy=error.remedy))
            continue
        notes += image.notes + (mask.notes if mask is not None else ())
        files = [_describe(f) for f in [*paths, *([mask_path] if mask_path else [])]]
        by_shape.setdefault(image.array.shape, []).append((image, mask, files))
    stacks = []
    for parts in by_shape.values():
        first = parts[0][0]
        labels = [mask.array[0] for _, mask, _ in parts if mask is not None]
        stacks.append(
            _Stack(
                image=np.concatenate([image.array for image, _, _ in parts], axis=1),
                label=np.concatenate(labels, axis=0) if labels else None,
                geometry=first,
                hashes=[f["sha256"] for _, _, files in parts for f in files[: len(source.sequences)]],
                files=[f for _, _, files in parts for f in files],
            )
        )
    return stacks, problems, notes


def _read_channels(paths: Sequence[Path], settings: CacheSettings) -> Volume:
    volumes = [read_image(path) for path in paths]
    if settings.grey:
        volumes = [as_grey(volume) for volume in volumes]
    first = volumes[0]
    for volume in volumes[1:]:
        if volume.shape != first.shape:
            raise InputError(
                f"its size ({_size(volume.shape)}) is not that of {first.source.name} ({_size(first.shape)})",
                where=volume.source,
                remedy="bring the sequences of a case onto one grid",
            )
    array = np.concatenate([volume.array for volume in volumes])
    if array.shape[0] != len(settings.channels):
        raise InputError(
            f"it has {array.shape[0]} channel(s), the others {len(settings.channels)}: {', '.join(settings.channels)}",
            where=first.source,
            remedy="keep images of one kind in one folder",
        )
    return Volume(
        array=array,
        spacing_mm=first.spacing_mm,
        source=first.source,
        origin_mm=first.origin_mm,
        direction=first.direction,
        notes=first.notes,
    )


def _size(shape: tuple[int, ...]) -> str:
    z, y, x = shape
    return f"{x}×{y}" if z == 1 else f"{x}×{y}×{z}"


def _files(source: CaseSource) -> list[Path]:
    return [f for files in source.sequences.values() for f in files] + list(source.masks)


def _describe(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"file": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _lesion_index(label: NDArray[np.uint8] | None) -> dict[str, NDArray[Any]]:
    """What sampling needs of each lesion: its voxels, box and up to 64 of its points, spread evenly over it.

    ``voxels (n,)``, ``boxes (n, 6)`` as z0 z1 y0 y1 x0 x1, ``points (m, 4)`` as lesion z y x.
    """
    empty: dict[str, NDArray[Any]] = {
        "voxels": np.zeros(0, np.int64),
        "boxes": np.zeros((0, 6), np.int32),
        "points": np.zeros((0, 4), np.int32),
    }
    if label is None or not label.any():
        return empty
    components, count = ndimage.label(label > 0, structure=np.ones((3, 3, 3)))
    voxels, boxes, points = [], [], []
    for number, box in enumerate(ndimage.find_objects(components)):
        coordinates = np.argwhere(components[box] == number + 1) + [s.start for s in box]
        chosen = coordinates[
            np.linspace(0, len(coordinates) - 1, min(len(coordinates), _POINTS_PER_LESION)).astype(int)
        ]
        voxels.append(len(coordinates))
        boxes.append([edge for s in box for edge in (s.start, s.stop)])
        points.append(np.column_stack([np.full(len(chosen), number), chosen]))
    assert count == len(voxels)
    return {
        "voxels": np.asarray(voxels, np.int64),
        "boxes": np.asarray(boxes, np.int32),
        "points": np.concatenate(points).astype(np.int32),
    }


def reusable_cases(folder: Path) -> dict[str, list[WrittenCase]]:
    """The cases of all published shards by key; a shard that cannot be read counts as absent."""
    found: dict[str, list[WrittenCase]] = {}
    for shard in sorted((folder / "shards").glob("*.h5")):
        try:
            with h5py.File(shard, "r") as file:
                cases = [_stored(group) for group in file.values()]
        except (OSError, KeyError, ValueError):
            continue
        for case in cases:
            assert case.record is not None
            found.setdefault(case.record.key, []).append(case)
    return found


def _stored(group: h5py.Group) -> WrittenCase:
    problems = [Problem(file=Path(f), reason=r, remedy=m) for f, r, m in json.loads(group.attrs["problems"])]
    record = _record(json.loads(group.attrs["record"]))
    return WrittenCase(record=record, problems=tuple(problems), notes=tuple(json.loads(group.attrs["notes"])))


def publish(folder: Path, records: Sequence[CaseRecord], description: dict[str, Any]) -> None:
    """Write index and ``dataset.json`` and drop the shards that nothing links to any more."""
    index = folder / ".dataset.h5"
    with h5py.File(index, "w") as file:
        cases = file.create_group("cases")
        for record in records:
            cases[record.case] = h5py.ExternalLink(f"shards/{record.shard}", record.case)
        file.attrs["schema"] = SCHEMA
    listing = {"schema": SCHEMA, **description, "cases": [asdict(record) for record in records]}
    text = folder / ".dataset.json"
    text.write_text(json.dumps(listing, indent=1), encoding="utf-8")
    index.replace(folder / "dataset.h5")
    text.replace(folder / "dataset.json")
    linked = {record.shard for record in records}
    for shard in (folder / "shards").glob("*.h5"):
        if shard.name not in linked:
            shard.unlink()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only one who writes *folder*, and clear away what a killed writer left. Raises InputError when busy."""
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("a+", encoding="utf-8") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however the process ends
        except ImportError:
            pass  # Windows: two at once are not told apart
        except OSError:
            handle.seek(0)
            raise InputError(
                f"another metaseg prepare is writing it (process {handle.read().strip() or 'unknown'})",
                where=folder,
                remedy="wait for it, or choose another --out",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        for leftover in shards.glob(".writing-*"):
            leftover.unlink()
        yield


# -- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared folder opened for reading. Shard files open lazily, in the process that reads them."""

    folder: Path
    kind: str
    normalisation: Normalisation
    sequences: tuple[str, ...]
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

    def in_fold(self, fold: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
        """Training and validation cases of *fold*; cases of a test folder are in neither."""
        usable = [r for r in self.cases if r.labelled and r.split != "test"]
        return [r for r in usable if r.fold != fold], [r for r in usable if r.fold == fold]


def open_prepared(folder: Path) -> Prepared:
    """Read ``dataset.json`` of a prepared folder. Raises InputError when it is not one or of another version."""
    path = folder / "dataset.json"
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
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
    return Prepared(
        folder=folder,
        kind=listing["kind"],
        normalisation=listing["normalisation"],
        sequences=tuple(listing["sequences"]),
        regions={name: tuple(values) for name, values in listing["regions"].items()},
        folds=listing["folds"],
        dataset_id=listing["id"],
        fingerprint=listing["fingerprint"],
        cases=tuple(_record(each) for each in listing["cases"]),
    )


def _record(values: dict[str, Any]) -> CaseRecord:
    tuples = ("shape", "spacing_mm", "lesion_voxels", "labels")
    fields: dict[str, Any] = {k: tuple(v) if k in tuples and v is not None else v for k, v in values.items()}
    return CaseRecord(**fields)


def region_masks(label: NDArray[np.uint8], regions: dict[str, tuple[int, ...]]) -> NDArray[np.bool_]:
    """Label map ``(…)`` → one mask per region ``(R, …)``; a region without values is every non-zero label."""
    member = partial(np.isin, label)
    return np.stack([member(values) if values else label > 0 for values in regions.values()])
