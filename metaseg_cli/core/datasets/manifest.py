"""A table of cases, for folders that no layout fits: ``case, patient, mask, t1c, t1n, …`` as CSV or TSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import distinct_names, find_file, image_files, mask_key, stem
from metaseg_cli.core.datasets.sequence_names import from_description, in_order, sequence_name
from metaseg_cli.core.dicom import is_dicom
from metaseg_cli.core.formats import ALL_READ, is_picture
from metaseg_cli.core.paths import check_openable, unusable
from metaseg_cli.errors import InputError, Problem, decoding

_MASK_COLUMNS = ("mask", "label", "seg", "segmentation")
_OWN = ("case", "patient", "split", *_MASK_COLUMNS)
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test", "": None}


def read_manifest(path: Path, root: Path) -> FoundCases:
    """Return the cases that the table *path* lists; its files are looked for under *root*, then beside the table.

    Empty cells are missing sequences. Raises InputError when the table cannot be used at all.
    """
    rows, columns = _rows(path)
    table = _Table(path=path, root=root, mask_column=next((c for c in _MASK_COLUMNS if c in columns), None))
    sequences, notes = _sequence_columns(table, rows, columns)
    if "patient" not in columns:
        notes.append("no column patient: every case counts as a patient of its own, and the score may flatter")
    cases: list[CaseSource] = []
    problems: list[Problem] = []
    taken: set[str] = set()
    for number, row in enumerate(rows, start=2):
        case = _case(table, number, row, sequences, taken)
        if isinstance(case, CaseSource):
            taken.add(_name(row, number))
            cases.append(case)
        else:
            problems += case
    names = distinct_names([case.case for case in cases])
    cases = [dataclasses.replace(case, case=name) for case, name in zip(cases, names, strict=True)]
    why = f"{path.name} lists {len(rows)} cases"
    return FoundCases(layout="manifest", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes), why=why)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Where the table lies, and where its files are looked for first."""

    path: Path
    root: Path
    mask_column: str | None

    def find(self, cell: str) -> Path | None:
        """Return the file that *cell* names; None for an empty cell and for a file that does not exist."""
        return (find_file(self.root, cell) or find_file(self.path.parent, cell)) if cell else None


def _sequence_columns(table: _Table, rows: list[dict[str, str]], columns: list[str]) -> tuple[list[str], list[str]]:
    """Return the columns that name images, and notes on those that name none. Raises InputError for none at all."""
    sequences, notes = [], []
    for column in (c for c in columns if c not in _OWN and c):
        cells = [row[column] for row in rows if row.get(column)]
        if cells and not any(table.find(cell) for cell in cells):
            notes.append(f"column {column} of {table.path.name} names no existing file: skipped")
        else:
            sequences.append(column)
    if not sequences:
        raise InputError(
            "no column names images",
            where=table.path,
            remedy="head it case,patient,mask,t1c,… with one column per sequence",
        )
    return sequences, notes


def _case(
    table: _Table, number: int, row: dict[str, str], sequences: list[str], taken: set[str]
) -> CaseSource | list[Problem]:
    """Return the case of line *number*, or why it cannot be used; *taken* are the names of the cases before it."""
    files, problems = _files(table, number, row, sequences)
    masks = files.pop("mask", ())
    name = _name(row, number)
    if problems:
        return problems
    if not files:
        return [Problem(file=table.path, reason=f"line {number} names no image", remedy="complete it")]
    if name in taken:
        return [Problem(file=table.path, reason=f"line {number}: a second case {name}", remedy="rename it")]
    split = (row.get("split") or "").lower()
    if split not in _SPLITS:
        return [Problem(file=table.path, reason=f"line {number}: split {split!r}", remedy="train, val or test")]
    first = next(iter(files.values()))[0]
    return CaseSource(
        case=name.replace("/", "_"),
        patient=row.get("patient") or name,
        sequences={s: files[s] for s in in_order(set(files))},
        masks=masks,
        slices=is_picture(first),
        split=_SPLITS[split],
    )


def _name(row: dict[str, str], number: int) -> str:
    return row.get("case") or row.get("patient") or f"line{number}"


def _files(
    table: _Table, number: int, row: dict[str, str], sequences: list[str]
) -> tuple[dict[str, tuple[Path, ...]], list[Problem]]:
    """Return the files of line *number* by sequence, or ``mask``; and a Problem for each cell that names no image."""
    files: dict[str, tuple[Path, ...]] = {}
    problems: list[Problem] = []
    for column in [*sequences, *([table.mask_column] if table.mask_column else [])]:
        cell = row.get(column) or ""
        found = table.find(cell)
        wrong = _not_an_image(found or table.root / cell) if cell else None
        if wrong is not None:
            problems.append(Problem(file=Path(cell), reason=f"line {number}: {wrong.reason}", remedy=wrong.remedy))
        elif found is not None:
            files["mask" if column == table.mask_column else sequence_name(column)] = (found,)
    return files, problems


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


def _not_an_image(path: Path) -> Problem | None:
    """Return why a cell names no image: the file does not exist, cannot be opened, or is of another kind."""
    wrong = unusable(path)
    if wrong is not None or path.is_dir() or path.name.lower().endswith(ALL_READ) or is_dicom(path):
        return wrong
    return Problem(file=path, reason="not an image that metaseg reads", remedy="convert it to NIfTI, DICOM or PNG")


def manifest_template(root: Path, cases: Sequence[CaseSource] = ()) -> str:
    """Return a manifest to complete by hand: *cases* where a layout found some, else a line per folder of images."""
    rows, unassigned = (_rows_of_cases(cases, root), []) if cases else _rows_of_folders(root)
    named = in_order({c for row in rows for c in row} - set(_OWN))
    text = io.StringIO()
    text.write("# One line per case. Paths are relative to the folder given to metaseg prepare.\n")
    text.write("# patient: cases of one patient share it. mask and sequences: a file, or a folder of DICOM files.\n")
    writer = csv.DictWriter(text, ["case", "patient", "mask", *(named or ("image",))], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.writelines(f"# not assigned: {path}\n" for path in unassigned)
    return text.getvalue()


def _rows_of_cases(cases: Sequence[CaseSource], root: Path) -> list[dict[str, str]]:
    """Return a row per case, except for stacks of pictures and files of several channels, which do not fit in cells."""
    rows = []
    for case in cases:
        if (case.slices and len(case.masks) > 1) or case.channels:
            continue
        row = {"case": case.case, "patient": case.patient}
        row |= {name: _relative(files[0], root) for name, files in case.sequences.items()}
        rows.append(row | ({"mask": _relative(case.masks[0], root)} if case.masks else {}))
    return rows


def _rows_of_folders(root: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return a row per folder of images, by what their names say, and the files that fit in no column."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in image_files(root):
        folders[path.parent].append(path)
    rows: list[dict[str, str]] = []
    unassigned: list[str] = []
    for folder, files in folders.items():
        row = {"case": folder.name if folder != root else "case1", "patient": folder.name if folder != root else ""}
        for path in files:
            name = from_description(stem(path))
            if name is None and mask_key(stem(path), certain=False) is not None:
                name = "mask"
            if name is None or name in row:
                unassigned.append(_relative(path, root))
            else:
                row[name] = _relative(path, root)
        rows.append(row)
    return rows, unassigned


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
