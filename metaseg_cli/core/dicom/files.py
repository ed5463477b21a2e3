"""Which files are DICOM, and their data sets."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metaseg_cli.core.dicom.structure import DEFLATED, BrokenStructure, Tag, check_structure, looks_like_dicom
from metaseg_cli.core.formats import DICOM
from metaseg_cli.core.paths import odd_name_below
from metaseg_cli.errors import COPY_AGAIN, InputError, decoding

_HEAD = 4096  # bytes: preamble, meta header and the first elements
_LOCK = threading.RLock()  # of the process's warning filters


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, by its suffix or, for other and missing suffixes, by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() in DICOM:
        return True
    try:
        with path.open("rb") as file:
            return looks_like_dicom(file.read(_HEAD))
    except OSError:
        return not path.suffix  # it may be a slice: reading it reports the error


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files anywhere under *folder*, hidden ones and DICOMDIR left out, in order of their names."""
    files = (p for p in sorted(folder.rglob("*")) if not is_skipped(p, folder))
    return [p for p in files if is_dicom(p)]


def is_skipped(path: Path, root: Path) -> bool:
    """Return whether a file under *root* is hidden, left by an archive, a DICOMDIR, or oddly named."""
    parts = path.relative_to(root).parts
    if odd_name_below(path, root) is not None:
        return True
    return path.name.upper() == "DICOMDIR" or any(part.startswith((".", "__MACOSX")) for part in parts)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's warnings about odd values, which ``python -W error`` turns into exceptions."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path, tags: Sequence[str] | None = None) -> Any:
    """Return the data set without its pixels; only *tags* when given. Raises InputError."""
    import pydicom

    with decoding(path, "not a readable DICOM file"), quiet(), path.open("rb") as file:
        head = file.read(_HEAD)
        _check_head(head, path)
        if DEFLATED.encode() in head:  # pydicom inflates the whole file, however large it would become
            _check_whole(head + file.read(), path)
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags) if tags else None, force=True)


def read_data_set(path: Path) -> Any:
    """Return the whole data set, after checking that the file is complete. Raises InputError."""
    import pydicom

    with decoding(path, "not a readable DICOM file"), quiet():
        data = path.read_bytes()
        _check_head(data[:_HEAD], path)
        _check_whole(data, path)
        found = pydicom.dcmread(io.BytesIO(data), force=True)
        if "TransferSyntaxUID" not in found.file_meta:
            found.file_meta.TransferSyntaxUID = _syntax_of(found, path)
        return found


def _check_whole(data: bytes, path: Path) -> None:
    try:
        check_structure(data, _is_sequence)
    except BrokenStructure as error:
        raise InputError(f"truncated or damaged: {error}", where=path, remedy=COPY_AGAIN) from error


def _check_head(head: bytes, path: Path) -> None:
    if not looks_like_dicom(head):
        what = "the file is empty (0 bytes)" if not head else "not a DICOM file: it does not start as one"
        raise InputError(what, where=path, remedy="replace or remove it")


def _syntax_of(data: Any, path: Path) -> Any:
    """Return the transfer syntax of a file without meta header: that of its elements. Raises InputError."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "PixelData" in data and data["PixelData"].is_undefined_length:
        raise InputError(
            "its pixels are compressed, and no meta header says how", where=path, remedy="export it again from the PACS"
        )
    implicit, little = data.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _is_sequence(tag: Tag) -> bool:
    from pydicom.datadict import dictionary_VR

    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return False
