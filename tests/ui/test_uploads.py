"""What uploads are called on disk, and what a session keeps."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaseg_cli.ui.kept import kept
from metaseg_cli.ui.uploads import digest_of, distinct, write_uploads


class File(io.BytesIO):
    def __init__(self, name: str, content: bytes = b"x") -> None:
        super().__init__(content)
        self.name = name


@given(st.lists(st.text(min_size=1, max_size=300), max_size=6))
def test_every_upload_gets_a_plain_name_of_its_own(names: list[str]) -> None:
    found = distinct(names)
    assert len({name.casefold() for name in found}) == len(found) == len(names)
    for name in found:
        assert name
        assert not name.startswith(".")
        assert not set(name) & set("/\\\0\n")
        assert len(name) <= 130


def test_files_of_two_folders_that_are_called_alike_are_both_written(tmp_path: Path) -> None:
    files = [File("a/IM1", b"1"), File("b/im1", b"2"), File("other", b"3")]
    folder = write_uploads(files, tmp_path / "scan")
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"1", b"2", b"3"]
    assert write_uploads(files[:1], tmp_path / "one") == tmp_path / "one" / "IM1"


def test_uploads_are_recognised_by_name_and_content() -> None:
    digests = {
        digest_of([File("a", b"1")]),
        digest_of([File("b", b"1")]),
        digest_of([File("a", b"2")]),
        digest_of([File("a", b"1"), File("b", b"1")]),
        digest_of([File("a", b""), File("b", b"11")]),
    }
    assert len(digests) == 5
    assert digest_of([File("a", b"1")]) in digests


def test_the_values_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaseg_cli.ui.kept.st.session_state", {})
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    def value(key: str) -> str:
        return kept("things", key, lambda: make(key), most=2)

    assert [value(key) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]
