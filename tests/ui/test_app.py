"""The app: its logic through Streamlit's own test harness, its look and feel in a real browser."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from metaseg_cli import load_model
from metaseg_cli.core.model_file import load_model_file, save_model
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.run_folder import find_model
from tests.common import APP, metaseg
from tests.dicom_files import SHAPE, write_series


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
    page.slider[0].set_value(0.05).run()
    assert not page.exception
    assert page.get("download_button")


@pytest.mark.filterwarnings("ignore")
def test_the_files_of_a_series_are_one_scan_with_a_seg(trained: Path, tmp_path: Path) -> None:
    files = write_series(tmp_path, np.random.default_rng(0).integers(1, 900, SHAPE).astype(np.uint16))
    page = app(trained)
    page.file_uploader[0].set_value([(file.name, file.read_bytes(), "") for file in files]).run()
    assert not page.exception
    assert [button.proto.label for button in page.get("download_button")] == [
        "Mask",
        "SEG",
        "Table",
        "Picture",
        "Report",
    ]
    assert [box.key for box in page.selectbox if box.key == "case"] == []
    page.slider[0].set_value(0.9).run()  # the SEG is that of the model's own threshold
    assert [button.proto.label for button in page.get("download_button")] == [
        "Mask",
        "Table",
        "Picture",
        "Report",
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_bad_file_among_uploads_is_named_and_the_others_are_shown(trained: Path, raw: Path) -> None:
    page = app(trained)
    scans = [raw / "train" / "patient001" / f"patient001_0{i}.png" for i in (1, 2)]
    given = [(scan.name, scan.read_bytes(), "image/png") for scan in scans]
    page.file_uploader[0].set_value([*given, ("broken_*x*.png", b"hello", "image/png")]).run()
    assert not page.exception
    assert len(page.selectbox(key="case").options) == 2
    (message,) = [error.value for error in page.error]
    assert "broken" in message
    assert "/" not in message.replace("\\", "")
    page.selectbox(key="case").select_index(1).run()
    assert not page.exception
    assert page.get("download_button")[0].proto.label == "Mask"


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
def finder(trained: Path, raw: Path, tmp_path: Path) -> Path:
    """A model that marks a twentieth of a scan at 0.5, however little it has learnt."""
    network, card = load_model_file(find_model(trained))
    values = load_model(find_model(trained)).predict(raw / "train" / "patient001" / "patient001_02.png").probabilities
    cut = float(np.quantile(values, 0.95))
    head = network.heads[0]  # attention-unet: the finest
    head.bias.data += -card.temperature * math.log(cut / (1 - cut))
    plain = {"metastasis": Postprocessing(threshold=0.5, per_slice=True)}
    path = tmp_path / "finder" / "model.safetensors"
    path.parent.mkdir()
    save_model(path, network, dataclasses.replace(card, postprocessing=plain, operating_points={}))
    return path


@pytest.fixture
def served(finder: Path) -> Iterator[str]:
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "metaseg_cli", "serve-ui", "--model", str(finder), "--port", str(port)],
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


@pytest.fixture
def traffic() -> list[str]:
    """What the page of the test has asked for, and ``frame`` for every message to the app and back."""
    return []


@pytest.fixture
def page(served: str, traffic: list[str]) -> Iterator[Page]:
    """The app in a browser; at the end nobody else was asked for anything."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        if os.environ.get("METASEG_BROWSER") == "required":
            pytest.fail("METASEG_BROWSER=required, but there is no Chromium")
        pytest.skip("no Chromium here")
    own = (served, served.replace("http", "ws"), "data:", "blob:")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.on("request", lambda request: traffic.append(request.url))
        page.on("websocket", lambda socket: socket.on("framesent", lambda _: traffic.append("frame")))
        page.on("websocket", lambda socket: socket.on("framereceived", lambda _: traffic.append("frame")))
        page.goto(served)
        expect(page.get_by_role("heading", name="metaseg", exact=True)).to_be_visible(timeout=60_000)
        yield page
        browser.close()
    assert [url for url in traffic if not url.startswith((*own, "frame"))] == []


def final(page: Page) -> dict[str, str]:
    """Wait until the viewer shows what the downloaded mask holds; return what it says of itself."""
    expect(page.get_by_test_id("viewer")).to_have_attribute("data-state", "final", timeout=60_000)
    return told(page)


def told(page: Page) -> dict[str, str]:
    values: dict[str, str] = page.get_by_test_id("viewer").evaluate("element => ({...element.dataset})")
    return values


def downloaded(page: Page, to: Path) -> Path:
    with page.expect_download() as download:
        page.locator(".st-key-download_mask button").click()
    path = to / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_a_picture_is_seen_as_the_downloaded_mask_has_it(page: Page, finder: Path, raw: Path, tmp_path: Path) -> None:
    scan = raw / "train" / "patient001" / "patient001_02.png"
    page.locator("input[type=file]").set_input_files(scan)
    assert {"slices": "1", "plane": "axial"}.items() <= final(page).items()
    page.locator(".st-key-threshold input[type=range], .st-key-threshold [role=slider]").first.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_test_id("viewer")).to_have_attribute("data-threshold", "0.49")
    shown = final(page)
    mask = downloaded(page, tmp_path)
    assert mask.name == "patient001_02_mask.png"
    typed = ("--model", finder, "--threshold", shown["threshold"], "--out", tmp_path / "terminal")
    assert metaseg("predict", scan, *typed).returncode == 0
    assert mask.read_bytes() == (tmp_path / "terminal" / mask.name).read_bytes()
    with Image.open(mask) as picture:
        assert np.count_nonzero(np.asarray(picture)) == int(shown["voxels"]) > 0
    keep = os.environ.get("METASEG_SCREENSHOTS")
    if keep:
        page.screenshot(path=keep)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_looking_through_a_volume_asks_nobody(page: Page, traffic: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 20, (40, 36, 12)).astype(np.float32)  # x, y, z
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1.0, 5.0, 1.0])), scan)
    page.locator("input[type=file]").set_input_files(scan)
    assert final(page)["slices"] == "12"
    page.wait_for_load_state("networkidle")  # parts of Streamlit load late
    page.wait_for_timeout(1000)
    assert "frame" in traffic
    traffic.clear()
    canvas = page.get_by_test_id("viewer").locator("canvas").first
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    begun = int(told(page)["slice"])
    for delta in (-100, -100, 100, -100):
        page.mouse.wheel(0, delta)
        page.wait_for_timeout(50)
    assert int(told(page)["slice"]) == max(1, begun - 2)
    page.keyboard.press("End")  # not one of its keys
    page.get_by_test_id("viewer").focus()
    for key in ("n", "p", "h", "m", "a", "+", "0", "PageDown", "?", "?"):
        page.keyboard.press(key)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 20, box["y"] + 20, steps=3)
    page.mouse.up(button="right")
    canvas.dblclick()
    assert traffic == []
    for key, ending in (("download_overlay", "_overlay.png"), ("download_report", "_report.html")):
        with page.expect_download() as download:
            page.locator(f".st-key-{key} button").click()
        assert download.value.suggested_filename == f"scan{ending}"
        assert download.value.path().stat().st_size > 1000
    viewer = page.get_by_test_id("viewer").bounding_box()
    assert viewer is not None
    assert viewer["y"] + viewer["height"] < 720


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_a_prediction_can_be_cancelled_and_begun_again(page: Page, tmp_path: Path) -> None:
    scan = tmp_path / "large.nii.gz"
    place = np.linspace(-1, 1, 512)
    smooth = 900 * np.exp(-4 * (place[:, None, None] ** 2 + place[:, None] ** 2 + place[:60] ** 2))
    nib.save(nib.Nifti1Image(smooth.astype(np.int16), np.eye(4)), scan)
    page.locator("input[type=file]").set_input_files(scan)
    expect(page.get_by_test_id("status")).to_be_visible(timeout=60_000)
    page.locator(".st-key-cancel button").click()
    expect(page.get_by_text("Cancelled.")).to_be_visible(timeout=10_000)
    expect(page.get_by_test_id("status")).to_have_count(0)
    page.locator(".st-key-restart button").click()
    assert final(page)["slices"] == "60"
    expect(page.locator(".st-key-cancel")).to_have_count(0)
