"""The command line as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metaseg_cli import config as settings
from metaseg_cli.cli import app
from metaseg_cli.config import COMMANDS
from metaseg_cli.config_file import dump_yaml, merge_config, read_yaml
from metaseg_cli.errors import ConfigError
from tests.common import metaseg


def test_help_lists_every_command_with_an_example() -> None:
    overview = metaseg("--help")
    assert overview.returncode == 0
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)
    for command in COMMANDS:
        assert command in overview.stdout
        page = metaseg(command, "--help")
        assert page.returncode == 0
        assert "Example" in page.stdout
        assert "--json" in page.stdout
        assert "--quiet" in page.stdout


def test_every_setting_is_an_option() -> None:
    for command, config in COMMANDS.items():
        page = metaseg(command, "--help").stdout
        for field, (_, setting, default) in settings.settings_of(config).items():
            option = ("no-" if default is True else "") + field.replace("_", "-")
            assert f"--{option}" in page or setting.positional, (config, field)
            assert setting.help[0].isupper()
            assert setting.help.endswith(".")


@pytest.mark.slow
def test_the_whole_way_from_pictures_to_masks_with_the_missions_commands(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").symlink_to(raw)
    done = metaseg("prepare", "./raw", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prepared is ready" in done.stdout
    tiny = ["--epochs", "1", "--widths", "4,8", "--patch", "32", "--steps-per-epoch", "2"]
    done = metaseg("train", "--model", "attention-unet", *tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = metaseg("evaluate", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1
    scan = raw / "train" / "patient001" / "patient001_02.png"
    done = metaseg("predict", scan, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions" / "patient001_02_mask.png").exists()
    same = metaseg("predict", "--input", scan, "--out", "again", "--model", "attention_unet", "--json", cwd=tmp_path)
    assert json.loads(same.stdout)["scans"][0]["mask"] == "again/patient001_02_mask.png"


def test_a_bad_file_in_a_batch_gives_exit_code_one_and_the_rest_is_done(
    trained: Path, raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("hello")
    good = raw / "train" / "patient001" / "patient001_02.png"
    done = metaseg("predict", tmp_path / "text.png", good, "--model", trained, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "not an image" in done.stdout
    assert (tmp_path / "out" / "patient001_02_mask.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("prepare", "nowhere"), "metaseg: nowhere: no such folder"),
        (("train",), "run metaseg prepare"),
        (("train", "--epochs", "0"), "--epochs must be at least 1"),
        (("train", "--model", "resnet"), "attention-unet"),
        (("train", "--widths", "a,b"), "16,32,64"),
        (("train", "--loss", "dice"), "dice-focal"),
        (("evaluate",), "metaseg train"),
        (("predict", "scan.png"), "metaseg train"),
        (("predict",), "nothing to predict"),
        (("train", "--config", "nowhere.yaml"), "no such file"),
        (("predict", "scan.png", "--threshold", "low"), "neither a number nor auto"),
        (("predict", "scan.png", "--threshold", "7"), "at most 1"),
        (("predict", "scan.png", "--threshold", "auto"), "metaseg train"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_one(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = metaseg(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("metaseg: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("trian",), ("train", "--epoch", "3"), ("train", "--epochs", "many"), ("prepare",)]
)
def test_wrong_usage_is_exit_code_two(arguments: tuple[str, ...]) -> None:
    assert metaseg(*arguments).returncode == 2


def test_quiet_says_nothing(raw: Path, tmp_path: Path) -> None:
    done = metaseg("prepare", raw, "--out", tmp_path / "out", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_json_is_one_document_on_stdout(raw: Path, tmp_path: Path) -> None:
    done = metaseg("prepare", raw, "--out", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["layout"] == "pairs"


def test_dry_run_writes_nothing(raw: Path, tmp_path: Path) -> None:
    done = metaseg("prepare", raw, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "patient001" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_process_of_its_own_says_the_same() -> None:
    command = [sys.executable, "-m", "metaseg_cli"]
    version, mistake = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        for more in (["--version"], ["train", "--epochs", "0"])
    )
    assert (version.returncode, version.stdout) == (0, metaseg("--version").stdout)
    assert version.stdout.startswith("metaseg 0.")
    assert mistake.returncode == 1
    assert mistake.stderr.startswith("metaseg: --epochs must be at least 1")


# -- settings --------------------------------------------------------------------------------------------------------


def test_typed_goes_before_yaml_goes_before_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 7\nfocal-gamma: 1\nwidths: [8, 16]\nmax_minutes: 2\n")
    config = merge_config(settings.TrainConfig, read_yaml(tmp_path / "c.yaml"), {"epochs": 9})
    assert (config.epochs, config.focal_gamma, config.widths, config.max_minutes) == (9, 1.0, (8, 16), 2.0)
    assert config.fold == "0"


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        merge_config(settings.TrainConfig, {"epoch": 3}, {})


@pytest.mark.parametrize("text", ["epochs: [", "- a\n- b", "epochs: many", "augment: 3", "patch: [a]"])
def test_yaml_that_means_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        merge_config(settings.TrainConfig, read_yaml(tmp_path / "c.yaml"), {})


def test_a_dumped_config_reads_back_the_same(tmp_path: Path) -> None:
    config = settings.TrainConfig(epochs=3, patch=(64, 32), max_minutes=1.5, augment=False, resume=None)
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    assert merge_config(settings.TrainConfig, read_yaml(tmp_path / "c.yaml"), {}) == config


def test_every_setting_of_predict_is_known_to_change_results_or_not() -> None:
    """A finished scan is kept when what its result depends on is the same: a new setting belongs to one of the two."""
    config = settings.PredictConfig(inputs=("a.png",), region="ET")
    others = {"inputs", "model", "out", "overwrite", "strict", "device", "cluster", "max_memory"}
    fields = {field.name for field in dataclasses.fields(config)}
    assert set(config.of_results()) | others == fields
    assert not set(config.of_results()) & others


# -- the shell -------------------------------------------------------------------------------------------------------


def test_completion_is_installed_into_an_empty_home_and_completes(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    install = f"{sys.executable} -m metaseg_cli --install-completion bash; exit $?"
    done = subprocess.run(["bash", "-c", install], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    script = tmp_path / ".bash_completions" / "metaseg.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert "complete -o default -F _metaseg_completion metaseg" in script.read_text()
    for words, word, answer in (
        ("metaseg pre", 1, {"prepare", "predict"}),
        ("metaseg predict --thr", 2, {"--threshold"}),
    ):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(word), "_METASEG_COMPLETE": "complete_bash"}
        done = subprocess.run(
            [sys.executable, "-m", "metaseg_cli"], env=environment | asked, capture_output=True, text=True, check=False
        )
        assert set(done.stdout.split()) == answer


_STOPPED_AT = """
import signal, sys
wanted = sys.argv.pop(1)
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Stop())
from metaseg_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("prepare", "metaseg_cli.cli"),
        ("predict", "typer"),
        ("evaluate", "rich.console"),
        ("train", "numpy"),
        ("serve-ui", "metaseg_cli.commands.serve_ui"),
        ("predict", "torch.nn"),
        ("evaluate", "torch._C"),
    ],
)
def test_ctrl_c_while_modules_are_imported_is_one_line(command: str, module: str, tmp_path: Path) -> None:
    arguments = [
        sys.executable,
        "-c",
        _STOPPED_AT,
        module,
        command,
        *(["x"] if command in ("prepare", "predict") else []),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("metaseg: interrupted")
