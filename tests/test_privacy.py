"""Names of patients are where the documentation says, and nowhere else."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import stat
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from PIL import Image

from metaseg_cli.cli import main
from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import EvaluateConfig, PrepareConfig
from metaseg_cli.core.cache import PrepareResult, open_prepared
from metaseg_cli.core.evaluation.model_cases import unseen_cases
from metaseg_cli.core.model_file import patient_hash, read_card, unkeyed_patient_hash
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError
from tests.dicom_files import SHAPE, lesions, make_seg, numbers, write_series

NAMES = ("Mueller_Anna_19480229", "12345678", "Smith^John")


def raw_folder(folder: Path) -> Path:
    """Two pictures of each patient in a folder of their own; a damaged one and one without mask among them."""
    for number, name in enumerate(NAMES):
        place = folder / name
        place.mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng(10 * number + index).integers(0, 255, (32, 32)).astype(np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            mask[5:9, 5 + index : 9 + index] = 255
            Image.fromarray(pixels).save(place / f"{name}_{index}.png")
            Image.fromarray(mask).save(place / f"{name}_{index}_mask.png")
        Image.fromarray(pixels).save(place / f"{name}_alone.png")
    (folder / NAMES[0] / f"{NAMES[0]}_1.png").write_bytes(b"damaged")
    return folder


def hidden(tmp_path: Path, out: str = "shared", **settings: Any) -> PrepareResult:
    return prepare(
        PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out" / out, workers=1, pseudonymise=True, **settings),
        Silent(),
    )


def told(data: bytes | str) -> list[str]:
    text = data if isinstance(data, bytes) else data.encode()
    text = re.sub(rb"base64,[A-Za-z0-9+/=]+", b"", text)  # of pictures: four given letters occur in it by chance
    parts = [part for name in NAMES for part in (name, *name.replace("^", "_").split("_"))]
    return [part for part in parts if part.encode() in text]


def attributes(path: Path) -> str:
    """Names of groups and all attributes of an HDF5 file."""
    found: list[str] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: found.append(f"{name} {dict(item.attrs)}"))
        links = [file["cases"].get(name, getlink=True) for name in file["cases"]] if "cases" in file else []
        found += [f"{link.filename} {link.path}" for link in links]
    return "\n".join(found)


def test_a_pseudonymised_folder_names_nobody(tmp_path: Path) -> None:
    raw_folder(tmp_path / "raw")
    result = hidden(tmp_path)
    assert len({case.patient for case in result.cases}) == 3
    assert any(p.left_out for p in result.problems)
    files = [p for p in result.out.rglob("*") if p.is_file()]
    assert {"dataset.h5", "dataset.json", "report.html", "contact_sheet.png"} <= {p.name for p in files}
    for path in files:
        assert told(path.read_bytes()) == [], path.name
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        if path.suffix == ".h5":
            assert told(attributes(path)) == []
    assert told(repr(result)) == []


@pytest.mark.parametrize("patients", [NAMES[:2], (NAMES[0], NAMES[0])])
def test_ids_in_dicom_headers_are_hidden_too(tmp_path: Path, patients: tuple[str, str]) -> None:
    for number, patient in enumerate(patients):
        folder = tmp_path / "raw" / f"study{number}"
        files = write_series(folder / "scan", numbers() + number, patient=patient, description=f"AX T1 {patient}")
        make_seg(folder / "seg.dcm", files, lesions(SHAPE), "BINARY")
    (folder / "scan/broken.dcm").write_bytes(b"no DICOM")
    result = hidden(tmp_path)
    assert len({case.patient for case in result.cases}) == 2
    assert told(repr(result)) == []
    for path in (p for p in result.out.rglob("*") if p.is_file()):
        assert told(path.read_bytes() + (attributes(path).encode() if path.suffix == ".h5" else b"")) == [], path.name


def test_what_is_printed_names_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_folder(tmp_path / "raw")
    for options in (["--json"], []):
        sys.argv = ["metaseg", "prepare", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--pseudonymise"]
        sys.argv += ["--workers", "1", *options]
        with pytest.raises(SystemExit):
            main()
        said = capsys.readouterr()
        assert told(said.out + said.err) == []
        assert "out.key.csv" in said.out
    assert "do not pass it on" in said.err


def test_the_key_tells_who_is_who_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    raw_folder(tmp_path / "raw")
    result = hidden(tmp_path)
    assert result.key == (tmp_path / "out/shared.key.csv").resolve()
    assert stat.S_IMODE(result.key.stat().st_mode) == 0o600
    rows = [line.split(",") for line in result.key.read_text().splitlines()[1:]]
    names = {pseudonym: original for kind, pseudonym, original in rows if kind == "patient"}
    assert {names[case.patient] for case in result.cases} == set(NAMES)
    files = {pseudonym: original for kind, pseudonym, original in rows if kind == "file"}
    for problem in result.problems:
        assert Path(files[str(problem.file)]).exists()


def test_preparing_again_gives_the_same_names_and_reads_nothing_again(tmp_path: Path) -> None:
    raw_folder(tmp_path / "raw")
    first = hidden(tmp_path)
    (tmp_path / "raw" / "Newman").mkdir()
    for index in range(2):
        for ending in (".png", "_mask.png"):
            source = tmp_path / "raw" / NAMES[1] / f"{NAMES[1]}_{index}{ending}"
            target = tmp_path / "raw" / "Newman" / f"Newman_{index}{ending}"
            target.write_bytes(source.read_bytes())
    second = hidden(tmp_path)
    assert {case.case for case in first.cases} < {case.case for case in second.cases}
    assert second.reused == len(first.cases)
    assert {(str(p.file), p.reason) for p in first.problems} <= {(str(p.file), p.reason) for p in second.problems}
    other = hidden(tmp_path, "other")
    assert not {case.patient for case in other.cases} & {case.patient for case in second.cases}


def test_a_damaged_key_is_refused_rather_than_replaced(tmp_path: Path) -> None:
    raw_folder(tmp_path / "raw")
    key = hidden(tmp_path).key
    before = key.read_text()
    key.write_text(before[: len(before) // 2].rsplit("\n", 1)[0].replace("secret", "scret"))
    with pytest.raises(InputError, match="not the key"):
        hidden(tmp_path)


@pytest.mark.parametrize("other", [{"dry_run": True}, {"write_manifest": Path("cases.csv")}])
def test_what_shows_names_excludes_hiding_them(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        PrepareConfig(raw=Path("raw"), pseudonymise=True, **other)


# -- model files -----------------------------------------------------------------------------------------------------


def test_a_model_file_holds_no_name_no_path_and_no_hash_to_guess(prepared: Path, trained: Path) -> None:
    data = (trained / "model.safetensors").read_bytes()
    listing = open_prepared(prepared)
    card = read_card(trained / "model.safetensors")
    assert card.patients
    assert listing.patient_key.encode() not in data
    assert str(prepared.parent).encode() not in data
    for case in listing.cases:
        for name in (case.patient, case.case, Path(case.file).name):
            assert name.encode() not in data
            for text in (name, f"{listing.dataset_id}/{name}"):
                for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
                    assert digest(text.encode()).hexdigest()[:16].encode() not in data


def test_evaluate_knows_the_patients_by_the_folders_key(prepared: Path, trained: Path) -> None:
    card = read_card(trained / "model.safetensors")
    listing = open_prepared(prepared)
    seen = {case.patient for case in listing.cases if case.content in card.trained_on}
    assert seen
    known = {c.patient for c in listing.cases if patient_hash(listing.patient_key, c.patient) in card.patients}
    assert known == seen
    # Another visit of a training patient: other images, and no content hash to know it by.
    visit = dataclasses.replace(next(c for c in listing.cases if c.patient in seen), content="0" * 16, images=())
    folder = dataclasses.replace(listing, cases=(visit,))
    for protected in (card, dataclasses.replace(card, patients=legacy(listing, seen), dataset_id=listing.dataset_id)):
        with pytest.raises(InputError, match="nothing to score"):
            unseen_cases(folder, protected, trained, EvaluateConfig(split="all"))
    other = dataclasses.replace(folder, patient_key="0" * 64)
    assert unseen_cases(other, card, trained, EvaluateConfig(split="all")) == ([visit], ())
    without = dataclasses.replace(folder, patient_key="")
    chosen, notes = unseen_cases(without, card, trained, EvaluateConfig(split="all"))
    assert chosen == [visit]
    assert "other visits of training patients are not" in notes[0]


def legacy(listing: object, patients: set[str]) -> tuple[str, ...]:
    return tuple(unkeyed_patient_hash(listing.dataset_id, patient) for patient in patients)


def test_the_key_of_a_folder_is_made_once_and_no_other_folder_has_it(raw: Path, tmp_path: Path) -> None:
    keys = []
    for out in ("one", "one", "two"):
        prepare(PrepareConfig(raw=raw, out=tmp_path / out, workers=1), Silent())
        keys.append(open_prepared(tmp_path / out).patient_key)
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 64
    (tmp_path / "two/.patient_key").write_text("damaged")
    with pytest.raises(InputError, match="not a key"):
        open_prepared(tmp_path / "two")
