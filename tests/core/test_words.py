"""Free text is read in words: series descriptions and the names of files and structures."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from metaseg_cli.core.datasets.sequence_names import case_and_sequence, from_description, known_sequence, sequence_name
from metaseg_cli.core.words import words

TABLE = list(csv.DictReader((Path(__file__).parent / "series_names.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AX T1 POST", ("ax", "t1", "post")),
        ("t1_mprage_sag_KM", ("t1", "mprage", "sag", "km")),
        ("AxT1Post", ("ax", "t1", "post")),
        ("T1CE", ("t1", "ce")),
        ("3DT1", ("3d", "t1")),
        ("T10-T12", ("t", "10", "t", "12")),
        ("Met1", ("met", "1")),
        ("GTVp1", ("gtv", "p", "1")),
        ("PTV_GTV1+2mm", ("ptv", "gtv", "1", "2", "mm")),
        ("NormalBrain", ("normal", "brain")),
        ("Après Läsion", ("apres", "lasion")),
        ("", ()),
        ("+-*/", ()),
    ],
)
def test_words_end_where_a_reader_sees_them_end(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_signs_are_words_on_demand_and_a_hyphen_is_none() -> None:
    assert words("T1 -C T1-C T1 +C T2* W/O", signs=True) == (
        *("t1", "-", "c", "t1", "c", "t1", "+", "c", "t2", "*", "w", "/", "o"),
    )


def test_what_is_written_together_is_a_chain_of_known_words() -> None:
    vocabulary = {"ax", "t1", "post", "gd"}
    assert words("AXT1POSTGD axial", vocabulary) == ("ax", "t1", "post", "gd", "axial")
    assert words("post1", vocabulary) == ("post", "1")
    assert words("x" * 5000, vocabulary) == ("x" * 5000,)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_words_do_not_depend_on_the_unicode_form(form: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> None:
    assert words(unicodedata.normalize(form, "Läsion PÓS")) == ("lasion", "pos")


@pytest.mark.parametrize("row", TABLE, ids=[f"{row['name']}|{row['agent']}" for row in TABLE])
def test_a_series_is_what_its_description_says(row: dict[str, str]) -> None:
    assert from_description(row["name"], row["agent"]) == (row["sequence"] or None)


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda t: t.replace(" ", "_"), lambda t: f"  {t} "])
def test_case_and_blanks_do_not_change_a_description(change: object) -> None:
    assert callable(change)
    mixed = {"HKCL 3D SST1 dor post KM HawkAI", "Ax T1 -C", "Ax T1 C-", "T1 pre und post KM"}
    for row in TABLE:
        if " " in row["name"] and row["name"] not in mixed:
            assert from_description(change(row["name"]), row["agent"]) == (row["sequence"] or None), row["name"]


def test_the_table_is_large() -> None:
    assert len({row["name"] for row in TABLE}) >= 150


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((t, "t1n") for t in ("t1", "T1w", "t1n", "T1-pre", "T1 native", "T1WI", "t1wpre", "pret1", "MPRAGE")),
        *((t, "t1c") for t in ("t1c", "T1Gd", "t1ce", "T1w-post", "T1 contrast-enhanced", "ceT1w", "t1km", "T1+C")),
        *((t, "t2w") for t in ("t2", "T2w", "T2-weighted")),
        *((t, "t2f") for t in ("flair", "FL", "fla", "T2-FLAIR", "t2f", "t2wflair")),
        *((t, None) for t in ("seg", "post", "image", "dwi", "t1map", "1", "", "case1_t1", "T10", "met1")),
    ],
)
def test_a_sequences_name_leaves_no_word_over(text: str, name: str | None) -> None:
    assert known_sequence(text) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS-MET-00110-000-t1c", ("BraTS-MET-00110-000", "t1c")),
        ("BraTS19_CBICA_AAB_1_t1ce", ("BraTS19_CBICA_AAB_1", "t1c")),
        ("UPENN-GBM-00001_11_T1GD", ("UPENN-GBM-00001_11", "t1c")),
        ("p1_T1w_post", ("p1", "t1c")),
        ("p1_T1_pre", ("p1", "t1n")),
        ("p1_T2_FLAIR", ("p1", "t2f")),
        ("p1_post_flair", ("p1_post", "t2f")),
        ("p1_gd_t1", ("p1", "t1c")),
        ("t1ce", ("", "t1c")),
        ("p1_post_t1", None),  # after the contrast or after the surgery
        ("p1_flair_post", None),
        ("p1_dwi", None),
        ("p1", None),
    ],
)
def test_a_files_name_ends_in_its_sequence(name: str, expected: tuple[str, str] | None) -> None:
    assert case_and_sequence(name) == expected


def test_other_names_stay_apart_in_any_script() -> None:
    assert sequence_name("DWI b1000") == "dwi_b1000"
    assert sequence_name("序列一") != sequence_name("序列二")
