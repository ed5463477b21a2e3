"""What --cluster names: a scheduler file, an address, or something else. Each wrong one is a message, and soon."""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path

import pytest

from metaseg_cli.core import executor
from metaseg_cli.errors import InputError

pytest.importorskip("distributed")


def message(cluster: str) -> str:
    with pytest.raises(InputError) as raised:
        list(executor.map_cases(str, ["a"], 1, cluster, file_of=Path, log_folder=None))
    return str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{ not json", b"[1]", b'{"type": "Scheduler"}', b'{"address": 3}', b"\xff"])
def test_a_file_that_is_no_scheduler_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "scheduler.json"
    file.write_bytes(content)
    said = message(str(file))
    assert said.startswith(f"{file}: not a scheduler file")
    assert "--scheduler-file" in said


@pytest.mark.parametrize("cluster", ["nofile.json", "", "localhost", "tcp://host:port", "foo/bar"])
def test_what_is_neither_file_nor_address_is_named(cluster: str) -> None:
    assert "--scheduler-file" in message(cluster)


def test_where_nobody_answers_the_wait_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_CLUSTER_SECONDS", 0.5)
    with socket.socket() as silent, socket.socket() as closed:
        for each in (silent, closed):
            each.bind(("127.0.0.1", 0))
        silent.listen()  # it takes a connection and says nothing
        dead = tmp_path / "dead.json"
        dead.write_text(f'{{"address": "tcp://127.0.0.1:{closed.getsockname()[1]}"}}')
        for cluster in (
            f"tcp://127.0.0.1:{silent.getsockname()[1]}",
            f"127.0.0.1:{closed.getsockname()[1]}",
            str(dead),
        ):
            start = time.monotonic()
            said = message(cluster)
            assert said.startswith(f"{cluster}: no Dask scheduler answers")
            assert "leave out --cluster" in said
            assert time.monotonic() - start < 30


def _doubled(number: int) -> int:
    return 2 * number


@pytest.mark.slow
def test_workers_start_with_a_long_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiprocessing's server listens at a socket in it, and the path of a socket is short."""
    long = tmp_path / ("a-long-name-" * 8)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    found = executor.map_cases(_doubled, [1, 2, 3], 2, file_of=lambda _: tmp_path, log_folder=None)
    assert [result for _, result in found] == [2, 4, 6]
