"""Small real things that many tests start from."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Several processes that each keep all processors busy would wait for one another: torch reads this when it is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.progress import Silent
from tests.common import tiny_training

# A busy computer is slow, and that is no fault of a property.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A shell's background jobs, and all that they start, ignore Ctrl-C: tests that send it need it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _plain_terminal() -> None:
    """Messages are compared: neither colours nor the width of somebody's window may change them."""
    os.environ.update({"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"})


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is written into the cache folder of the person who runs the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skipped test."""
    folder = os.environ.get("METASEG_TEST_DATA", "")
    if not folder:
        pytest.skip("METASEG_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom pictures of five patients to train on and one to test with, four slices each."""
    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_pictures

    folder = tmp_path_factory.mktemp("raw")
    settings = PhantomSettings(shape=(4, 64, 64), lesions=(2, 5), diameter_mm=(8.0, 25.0))
    write_phantom_pictures(folder / "train", 5, 4, settings, seed=1)
    write_phantom_pictures(folder / "test", 1, 4, settings, seed=1, first=6)
    return folder


@pytest.fixture(scope="session")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``raw`` prepared."""
    from metaseg_cli.commands.prepare import prepare

    out = tmp_path_factory.mktemp("work") / "prepared"
    prepare(PrepareConfig(raw=raw, out=out, workers=1), Silent())
    return out


@pytest.fixture(scope="session")
def trained(prepared: Path) -> Path:
    """A finished run of a tiny attention-unet."""
    from metaseg_cli.commands.train import train

    torch.set_num_threads(2)
    return train(tiny_training(prepared, prepared.parent / "runs"), Silent()).run
