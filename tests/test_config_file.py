"""Settings go through YAML unchanged, whatever they are."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from metaseg_cli.config import COMMANDS, Setting, TrainConfig, settings_of
from metaseg_cli.config_file import dump_yaml, merge_config, read_yaml
from metaseg_cli.errors import ConfigError
from tests.common import metaseg

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


def values(kind: Any, setting: Setting) -> st.SearchStrategy[Any]:
    """Any value that a setting accepts by its type, limits and choices."""
    if setting.choices:
        return st.sampled_from(setting.choices)
    low, high = setting.min, setting.max
    optional = type(None) in get_args(kind)
    base = next(k for k in (get_args(kind) if optional else (kind,)) if k is not type(None))
    if get_origin(base) is tuple:
        return st.lists(values(get_args(base)[0], setting), max_size=3).map(tuple)
    strategy: st.SearchStrategy[Any] = {
        bool: st.booleans(),
        int: st.integers(int(low or 0), int(high if high is not None else 10**6)),
        float: st.floats(low if low is not None else -1e6, high if high is not None else 1e6),
        str: TEXT,
        Path: TEXT.map(Path),
    }[base]
    return st.none() | strategy if optional else strategy


@st.composite
def configs(draw: st.DrawFn, command: str) -> Any:
    """A config of *command* with some settings drawn; combinations that it refuses are drawn again."""
    kind = COMMANDS[command]
    given_ = {}
    for name, (type_, setting, default) in settings_of(kind).items():
        if default is dataclasses.MISSING or draw(st.booleans()):
            given_[name] = draw(values(type_, setting))
    try:
        return kind(**given_)
    except ConfigError:
        reject()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_yaml_gives_back_what_was_written(command: str, data: st.DataObject) -> None:
    config = data.draw(configs(command))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(dump_yaml(config), encoding="utf-8")
        assert merge_config(type(config), read_yaml(path), {}) == config


def test_the_command_line_overrides_the_file() -> None:
    assert merge_config(TrainConfig, {"epochs": 7, "seed": 2}, {"epochs": 9}) == TrainConfig(epochs=9, seed=2)


def test_a_former_name_is_read_from_files_and_the_command_line() -> None:
    assert merge_config(TrainConfig, {"layout": "contiguous"}, {}) == TrainConfig(memory_format="contiguous")
    for option in ("--layout", "--memory-format"):
        done = metaseg("train", option, "wide")
        assert done.returncode == 1
        assert "--memory-format 'wide' does not exist" in done.stderr
    assert "--layout" not in metaseg("train", "--help").stdout
