"""A table of cases, for folders that no layout fits: ``case, patient, mask, t1c, t1n, …`` as CSV or TSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import distinct, find_file, image_files, mask_key, stem
from metaseg_cli.core.datasets.sequence_names import from_description, in_order, sequence_name
from metaseg_cli.core.dicom import is_dicom
from metaseg_cli.core.formats import ALL_READ, is_picture
from metaseg_cli.core.paths import check_openable, unusable
from metaseg_cli.errors import InputError, Problem, decoding

_MASK_COLUMNS = ("mask", "label", "seg", "segmentation")
_OWN = ("case", "patient", "split", *_MASK_COLUMNS)
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test", "": None}


def read_manifest(path: Path, root: Path) -> FoundCases:
    """The cases that the table *path* lists; its files are looked for under *root*, then beside the table.

    Empty cells are missing sequences. Raises InputError when the table cannot be used at all.
    """
    rows, columns = _rows(path)
    mask_column = next((c for c in _MASK_COLUMNS if c in columns), None)
    notes: list[str] = []
    sequences = []
    for column in (c for c in columns if c not in _OWN and c):
        cells = [row[column] for row in rows if row.get(column)]
        if cells and not any(_found(cell, root, path.parent) for cell in cells):
            notes.append(f"column {column} of {path.name} names no file that is there: passed over")
        else:
            sequences.append(column)
    if not sequences:
        raise InputError(
            "no column names images", where=path, remedy="head it case,patient,mask,t1c,… with one column per sequence"
        )
    if "patient" not in columns:
        notes.append("no column patient: every case counts as a patient of its own, and the score may flatter")
    cases: list[CaseSource] = []
    problems: list[Problem] = []
    taken: set[str] = set()
    for number, row in enumerate(rows, start=2):
        files: dict[str, tuple[Path, ...]] = {}
        bad = False
        for column in [*sequences, *([mask_column] if mask_column else [])]:
            cell = row.get(column) or ""
            found = _found(cell, root, path.parent)
            wrong = _not_an_image(found or root / cell) if cell else None
            if wrong is not None:
                problems.append(Problem(file=Path(cell), reason=f"line {number}: {wrong.reason}", remedy=wrong.remedy))
                bad = True
            elif found is not None:
                files["mask" if column == mask_column else sequence_name(column)] = (found,)
        masks = files.pop("mask", ())
        case = row.get("case") or row.get("patient") or f"line{number}"
        if bad or not files:
            if not bad:
                problems.append(Problem(file=path, reason=f"line {number} names no image", remedy="complete it"))
            continue
        if case in taken:
            problems.append(Problem(file=path, reason=f"line {number}: a second case {case}", remedy="rename it"))
            continue
        split = (row.get("split") or "").lower()
        if split not in _SPLITS:
            problems.append(Problem(file=path, reason=f"line {number}: split {split!r}", remedy="train, val or test"))
            continue
        taken.add(case)
        first = next(iter(files.values()))[0]
        cases.append(
            CaseSource(
                case=case.replace("/", "_"),
                patient=row.get("patient") or case,
                sequences={s: files[s] for s in in_order(set(files))},
                masks=masks,
                slices=is_picture(first),
                split=_SPLITS[split],
            )
        )
    names = distinct([case.case for case in cases])
    cases = [dataclasses.replace(case, case=name) for case, name in zip(cases, names, strict=True)]
    why = f"{path.name} lists {len(rows)} cases"
    return FoundCases(layout="manifest", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes), why=why)


def _rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    check_openable(path)
    with decoding(path, "not a table in UTF-8", remedy="save it as CSV or TSV in UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) < 2:
        raise InputError("a table without cases", where=path, remedy="write one line per case below the heading")
    delimiter = max("\t;,", key=lines[0].count)
    with decoding(path, "not a table", remedy="save it as CSV or TSV in UTF-8"):
        table = list(csv.reader(lines, delimiter=delimiter))
    columns = [name.strip().lower() for name in table[0]]
    twice = {c for c in columns if c and columns.count(c) > 1}
    if twice:
        raise InputError(f"two columns are named {', '.join(twice)}", where=path, remedy="rename one")
    for number, row in enumerate(table[1:], start=2):
        if len(row) > len(columns):
            raise InputError(
                f"line {number} has {len(row)} cells, the heading {len(columns)}", where=path, remedy="quote commas"
            )
    return [{c: v.strip() for c, v in zip(columns, row, strict=False)} for row in table[1:]], columns


def _found(cell: str, root: Path, beside: Path) -> Path | None:
    if not cell:
        return None
    return find_file(root, cell) or find_file(beside, cell)


def _not_an_image(path: Path) -> Problem | None:
    """Why a cell names no image: there is no such file, it is nothing to open, or one of another kind."""
    wrong = unusable(path)
    if wrong is not None or path.is_dir() or path.name.lower().endswith(ALL_READ) or is_dicom(path):
        return wrong
    return Problem(file=path, reason="not an image that metaseg reads", remedy="convert it to NIfTI, DICOM or PNG")


def template(root: Path, cases: Sequence[CaseSource] = ()) -> str:
    """A manifest to complete by hand: *cases* where a layout found some, else a line for each folder of images."""
    text = io.StringIO()
    text.write("# One line per case. Paths are relative to the folder given to metaseg prepare.\n")
    text.write("# patient: cases of one patient share it. mask and sequences: a file, or a folder of DICOM files.\n")
    rows: list[dict[str, str]] = []
    over: list[str] = []
    if cases:
        for case in cases:
            if (case.slices and len(case.masks) > 1) or case.channels:
                continue  # stacks of pictures and files of several channels have no cell each
            row = {"case": case.case, "patient": case.patient}
            row |= {name: _relative(files[0], root) for name, files in case.sequences.items()}
            rows.append(row | ({"mask": _relative(case.masks[0], root)} if case.masks else {}))
    else:
        folders: dict[Path, list[Path]] = defaultdict(list)
        for path in image_files(root):
            folders[path.parent].append(path)
        for folder, files in folders.items():
            row = {"case": folder.name if folder != root else "case1", "patient": folder.name if folder != root else ""}
            for path in files:
                name = from_description(stem(path))
                if name is None and mask_key(stem(path), certain=False) is not None:
                    name = "mask"
                if name is None or name in row:
                    over.append(_relative(path, root))
                else:
                    row[name] = _relative(path, root)
            rows.append(row)
    named = in_order({c for row in rows for c in row} - set(_OWN))
    writer = csv.DictWriter(text, ["case", "patient", "mask", *(named or ("image",))], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.writelines(f"# not assigned: {path}\n" for path in over)
    return text.getvalue()


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
