"""The app: its logic through Streamlit's own test harness, its look and feel in a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaseg_cli.ui.pictures import blended, enlarged, grey_or_colour
from tests.common import APP


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    picture = grey_or_colour(np.random.default_rng(0).normal(size=(1, 3, 60, 100)), 1)
    large = enlarged(picture)
    assert large.shape == (360, 600, 3)
    mask = np.zeros((60, 100), bool)
    mask[20:30, 40:50] = True
    assert (blended(large, mask, 0.5) != large).any()
    np.testing.assert_array_equal(blended(large, mask & False, 0.5), large)


def app(trained: Path) -> object:
    from streamlit.testing.v1 import AppTest

    os.environ["METASEG_UI_RUNS"] = str(trained.parent)
    os.environ.pop("METASEG_UI_MODEL", None)
    return AppTest.from_file(str(APP), default_timeout=60).run()


@pytest.mark.filterwarnings("ignore")
def test_an_uploaded_scan_is_segmented_and_measured(trained: Path, raw: Path) -> None:
    page = app(trained)
    assert not page.exception
    assert page.sidebar.selectbox[0].options[0].startswith("attention-unet")
    scan = (raw / "train" / "patient001" / "patient001_02.png").read_bytes()
    page.file_uploader[0].set_value(("scan.png", scan, "image/png")).run()
    assert not page.exception
    page.sidebar.slider[0].set_value(0.05).run()
    assert not page.exception
    assert page.get("download_button")


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_image_gives_the_terminals_message(trained: Path) -> None:
    page = app(trained)
    page.file_uploader[0].set_value(("scan.png", b"hello", "image/png")).run()
    assert not page.exception
    assert "not an image" in page.error[0].value


@pytest.mark.filterwarnings("ignore")
def test_without_a_model_the_app_says_how_to_get_one(tmp_path: Path) -> None:
    from streamlit.testing.v1 import AppTest

    os.environ["METASEG_UI_RUNS"] = str(tmp_path)
    page = AppTest.from_file(str(APP), default_timeout=60).run()
    assert "metaseg demo" in page.info[0].value


# -- in a browser ----------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def served(trained: Path) -> Iterator[str]:
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "metaseg_cli", "serve-ui", "--runs", str(trained.parent), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.25)
        else:
            pytest.fail("the app did not come up within a minute")
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_a_person_uploads_looks_and_downloads(served: str, raw: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        if os.environ.get("METASEG_BROWSER") == "required":
            pytest.fail("METASEG_BROWSER=required, but there is no Chromium")
        pytest.skip("no Chromium here")
    from playwright.sync_api import expect, sync_playwright

    scan = raw / "train" / "patient001" / "patient001_02.png"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1200})
        foreign: list[str] = []
        page.on(
            "request",
            lambda r: (
                None
                if r.url.startswith((served, served.replace("http", "ws"), "data:", "blob:"))
                else foreign.append(r.url)
            ),
        )
        page.goto(served)
        expect(page.get_by_role("heading", name="metaseg", exact=True)).to_be_visible(timeout=60_000)
        page.locator("input[type=file]").set_input_files(scan)
        expect(page.get_by_text("Download mask")).to_be_visible(timeout=60_000)
        expect(page.locator("[data-testid=stImage] img").nth(1)).to_be_visible()
        page.screenshot(path=tmp_path / "ui.png")
        with page.expect_download() as download:
            page.get_by_text("Download mask").click()
        download.value.save_as(tmp_path / "mask.png")
        assert download.value.suggested_filename == "patient001_02_mask.png"
        browser.close()
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == (64, 64)
    keep = os.environ.get("METASEG_SCREENSHOTS")
    if keep:
        shutil.copy(tmp_path / "ui.png", keep)
    assert foreign == []
