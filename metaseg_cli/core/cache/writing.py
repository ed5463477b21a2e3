"""Write a prepared folder: shards by many processes, then the index, each whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from metaseg_cli.core.atomic import atomic_write_bytes, atomic_write_text, exclusive_writer, make_folder
from metaseg_cli.core.cache.case_reading import ReadCase, read_case
from metaseg_cli.core.cache.origin import READING, origin_attributes
from metaseg_cli.core.cache.reading import read_patient_key
from metaseg_cli.core.cache.records import (
    INDEX_FILE,
    LISTING_FILE,
    PATIENT_KEY,
    SCHEMA,
    SHARDS,
    CacheSettings,
    CaseRecord,
    WrittenCase,
)
from metaseg_cli.core.cache.seal import check_seal, file_in_memory, seal
from metaseg_cli.core.datasets.case_source import CaseSource
from metaseg_cli.core.descriptors import describe
from metaseg_cli.core.detection import label_lesions, voxel_size
from metaseg_cli.core.label_maps import region_masks
from metaseg_cli.core.preprocessing import preprocess
from metaseg_cli.core.pseudonyms import file_aliases, redact_problem, redactor_of_source
from metaseg_cli.core.typed_json import build, parsed
from metaseg_cli.errors import Problem, attempt

_POINTS_PER_LESION = 64  # more centres than an epoch draws from one lesion
_SHARD_BYTES = 16 * 2**20  # of source files; small enough to spread over workers, large enough not to litter
_SHARD_CASES = 64  # at most: a changed case rewrites its shard
_SHARDS = 16  # at least, so that several workers have work


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The cases that one worker puts into one shard."""

    folder: Path
    sources: tuple[CaseSource, ...]
    settings: CacheSettings


def case_key(source: CaseSource, settings: CacheSettings) -> str:
    """Return a key that changes when a file of the case, its order or a setting does."""
    files = [(os.path.abspath(f), f.stat().st_size, f.stat().st_mtime_ns) for f in source.files if f.exists()]
    named = [(name, [os.path.abspath(f) for f in paths]) for name, paths in source.sequences.items()]
    identity = [SCHEMA, asdict(settings), source.case, source.patient, source.split, named, source.channels, files]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def shard_jobs(folder: Path, sources: Sequence[CaseSource], settings: CacheSettings, total: int) -> list[ShardJob]:
    """Group *sources*, those of *total* that are new, into shards of about 16 MB of files and 1/16 of all cases.

    Nothing depends on the number of workers or on the remains of a killed run: the shards are always the same.
    """
    most = max(1, min(_SHARD_CASES, -(-total // _SHARDS)))
    jobs: list[ShardJob] = []
    group: list[CaseSource] = []
    size = 0
    for source in sources:
        group.append(source)
        size += sum(f.stat().st_size for f in source.files if f.exists())
        if size >= _SHARD_BYTES or len(group) >= most:
            jobs.append(ShardJob(folder=folder, sources=tuple(group), settings=settings))
            group, size = [], 0
    if group:
        jobs.append(ShardJob(folder=folder, sources=tuple(group), settings=settings))
    return jobs


def write_shard(job: ShardJob) -> list[WrittenCase]:
    """Read, check, normalise and store the cases of *job*; the shard appears whole or not at all.

    It is made in memory and written in one go: HDF5 does not survive a full disk.
    """
    name = hashlib.sha256("".join(case_key(s, job.settings) for s in job.sources).encode()).hexdigest()[:16] + ".h5"
    log_folder = None if job.settings.secret else job.folder  # a traceback names files
    written: list[WrittenCase] = []
    with file_in_memory() as file:
        for source in job.sources:
            cases = attempt(partial(_write_case, file, source, job.settings, name), source.first_file, log_folder)
            if isinstance(cases, Problem):
                for left in [
                    group for group in file if group == source.case or group.startswith(f"{source.case}_size")
                ]:
                    del file[left]
                cases = [WrittenCase(record=None, problems=(cases,))]
            written += cases
        if len(file):
            atomic_write_bytes(job.folder / SHARDS / name, seal(file))
    return written


def _write_case(file: h5py.File, source: CaseSource, settings: CacheSettings, shard: str) -> list[WrittenCase]:
    cases, problems, notes = read_case(source, settings)
    names = {path: path for path in (*source.files, source.first_file)}
    if settings.secret:
        names = file_aliases(source)
        redactor = redactor_of_source(source)
        problems = [redact_problem(p, names.get(p.file, source.case), redactor) for p in problems]
        notes = [redactor.text(note) for note in notes]
    if not cases:
        return [WrittenCase(record=None, problems=tuple(problems), notes=tuple(notes))]
    origin = {name: json.dumps(value) for name, value in origin_attributes(source, settings, names).items()}
    results: list[WrittenCase] = []
    for number, case in enumerate(cases, start=1):
        name = source.case if number == 1 else f"{source.case}_size{number}"
        group = file.create_group(name)
        record = _store(group, case, source, settings, shard, str(names[source.first_file]))
        # Problems of its files stay with the case: a later run that reuses it reports them too.
        own = number == 1
        results.append(
            WrittenCase(record=record, problems=tuple(problems) if own else (), notes=tuple(notes) if own else ())
        )
        group.attrs["record"] = json.dumps(record.record())
        group.attrs.update(origin)
        group.attrs["problems"] = json.dumps(
            [[str(p.file), p.reason, p.remedy, p.left_out] for p in results[-1].problems]
        )
        group.attrs["notes"] = json.dumps(results[-1].notes)
    return results


def _store(
    group: h5py.Group, case: ReadCase, source: CaseSource, settings: CacheSettings, shard: str, file: str
) -> CaseRecord:
    """Write the case's arrays and geometry into *group*; *file* names it in messages."""
    present, mapping = preprocess(case.image, settings.preprocessing, keep=case.label)
    z, y, x = mapping.shape
    # A missing sequence is 0, which is the mean of every available one.
    stored = np.zeros((z, len(settings.sequences), y, x), np.float16)
    for channel, sequence in zip(present, case.sequences, strict=True):
        stored[:, settings.sequences.index(sequence)] = channel
    label = mapping.label(case.label) if case.label is not None else np.zeros((z, y, x), np.uint8)
    # Whole slices with all their channels as chunks, LZ4 without shuffle: measured, see docs/concepts/cache.md.
    # Flushed one by one: the layout of the file would otherwise depend on when Python closes its handles, and the same
    # cases must give the same bytes in any process.
    group.create_dataset("image", data=stored, chunks=(1, *stored.shape[1:]), **hdf5plugin.LZ4())
    group.file.flush()
    group.create_dataset("label", data=label, chunks=(1, y, x), **hdf5plugin.LZ4())
    group.file.flush()
    foreground = np.isin(label, settings.foreground) if settings.foreground else label > 0
    lesions = _lesion_index(foreground)
    for field_name, values in lesions.items():
        group.create_dataset(f"lesions/{field_name}", data=values)
        group.file.flush()
    rows = describe(present, case.sequences, settings.sequences, each_slice=not settings.preprocessing.oriented)
    group.create_dataset("descriptors", data=rows)
    group.file.flush()
    group.attrs["patient"] = source.patient
    group.attrs["sequences"] = list(settings.sequences)
    group.attrs["sequences_present"] = list(case.sequences)
    group.attrs["spacing_mm"] = mapping.spacing_mm or ()
    group.attrs["cropped_spacing_mm"] = mapping.cropped_spacing_mm or ()
    group.attrs["source_shape"] = case.image.shape
    group.attrs["source_affine_lps"] = case.image.affine
    group.attrs["crop"] = mapping.box  # (z, y, x) start and stop, after turning to the canonical orientation
    group.attrs["turn"] = json.dumps(asdict(mapping.reorientation)) if mapping.reorientation else ""
    return CaseRecord(
        case=group.name.removeprefix("/"),
        patient=source.patient,
        file=file,
        shape=mapping.shape,
        spacing_mm=mapping.spacing_mm,
        source_spacing_mm=case.image.spacing_mm,
        sequences=case.sequences,
        lesion_voxels=tuple(int(v) for v in lesions["voxels"]),
        labels=tuple(int(v) for v in np.unique(label) if v),
        content=hashlib.sha256("".join(case.hashes).encode()).hexdigest()[:16],
        images=case.hashes,
        key=case_key(source, settings),
        shard=shard,
        labelled=case.label is not None,
        split=source.split,
        region_voxels={
            name: int(np.count_nonzero(mask))
            for name, mask in zip(settings.regions, region_masks(label, settings.regions), strict=True)
        },
        smallest_lesions=_smallest_lesions(case, settings.regions),
        per_slice=case.per_slice,
    )


def _smallest_lesions(case: ReadCase, regions: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Return the size of the smallest lesion of each region on the grid of the files."""
    if case.label is None:
        return {}
    voxel = voxel_size(case.image.spacing_mm, flat=case.per_slice)
    smallest = {}
    for name, mask in zip(regions, region_masks(case.label, regions), strict=True):
        labels, count = label_lesions(mask, per_slice=case.per_slice)
        if count:
            smallest[name] = float(np.bincount(labels[labels > 0])[1:].min()) * voxel
    return smallest


def _lesion_index(foreground: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return what sampling needs of each lesion: its voxels, box and up to 64 of its points, evenly spread.

    ``voxels (n,)``, ``boxes (n, 6)`` as z0 z1 y0 y1 x0 x1, ``points (m, 4)`` as lesion z y x.
    """
    voxels, boxes, points = [], [], []
    labels, _ = label_lesions(foreground)
    for number, box in enumerate(ndimage.find_objects(labels)):
        coordinates = np.argwhere(labels[box] == number + 1) + [s.start for s in box]
        spread = np.linspace(0, len(coordinates) - 1, min(len(coordinates), _POINTS_PER_LESION)).astype(int)
        voxels.append(len(coordinates))
        boxes.append([edge for s in box for edge in (s.start, s.stop)])
        points.append(np.column_stack([np.full(len(spread), number), coordinates[spread]]))
    return {
        "voxels": np.asarray(voxels, np.int64),
        "boxes": np.asarray(boxes, np.int32).reshape(-1, 6),
        "points": np.concatenate([np.zeros((0, 4), np.int64), *points]).astype(np.int32),
    }


def reusable_cases(folder: Path) -> dict[str, list[WrittenCase]]:
    """Return the cases of all complete shards by key; a shard that cannot be read counts as absent."""
    found: dict[str, list[WrittenCase]] = {}
    for shard in sorted(p for p in (folder / SHARDS).glob("*.h5") if p.is_file()):
        try:
            check_seal(shard, "")
            with h5py.File(shard, "r") as file:
                # An older version did not store how files make a case: those are read again.
                cases = [_stored(group) for group in file.values() if READING in group.attrs]
        except Exception:  # a damaged shard may raise anything: its cases are read again
            continue
        for case in cases:
            assert case.record is not None
            found.setdefault(case.record.key, []).append(case)
    return found


def _stored(group: h5py.Group) -> WrittenCase:
    problems = [
        Problem(file=Path(f), reason=r, remedy=m, left_out=left_out)
        for f, r, m, left_out in json.loads(group.attrs["problems"])
    ]
    record = build(CaseRecord, parsed(group.attrs["record"]))
    return WrittenCase(record=record, problems=tuple(problems), notes=tuple(json.loads(group.attrs["notes"])))


def commit_index(folder: Path, records: Sequence[CaseRecord], description: dict[str, Any]) -> None:
    """Write index and ``dataset.json``, and delete the shards that are no longer linked.

    A folder without a key for hashes of patients gets one.
    """
    if not read_patient_key(folder):
        atomic_write_text(folder / PATIENT_KEY, secrets.token_hex(32))
    with file_in_memory() as file:
        cases = file.create_group("cases")
        for record in records:
            cases[record.case] = h5py.ExternalLink(f"{SHARDS}/{record.shard}", record.case)
        file.attrs["schema"] = SCHEMA
        index = seal(file)
    listing = {"schema": SCHEMA, **description, "cases": [record.record() for record in records]}
    atomic_write_bytes(folder / INDEX_FILE, index)
    atomic_write_text(folder / LISTING_FILE, json.dumps(listing, indent=1))
    linked = {record.shard for record in records}
    for shard in (folder / SHARDS).glob("*.h5"):
        if shard.name not in linked:
            shard.unlink()


@contextlib.contextmanager
def exclusive_cache_writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes *folder*, cleared of what a killed writer left. Raises InputError when busy."""
    make_folder(folder)
    make_folder(folder / SHARDS)
    with exclusive_writer(folder, "metaseg prepare"):
        yield
