"""What comes from outside opens nothing else, names nothing else, and reaches nobody else."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaseg_cli.cli import main
from metaseg_cli.commands.predict import predict
from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import PredictConfig, PrepareConfig, ServeUiConfig
from metaseg_cli.config_file import read_yaml
from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.datasets import read_manifest
from metaseg_cli.core.images import read_image, read_mask
from metaseg_cli.core.model_file import read_card
from metaseg_cli.core.password import HASH_VARIABLE, hash_password, is_password
from metaseg_cli.core.paths import file_name, odd_name
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.typed_json import read_json
from metaseg_cli.errors import ConfigError, InputError, MetasegError
from tests.common import APP

ODD = ["a\nb", "a\rb", "a\x1b[31mb", "a\u2028b", os.fsdecode(b"a\xffb")]


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64)).astype(np.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    return path


def mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((64, 64), np.uint8)
    pixels[20:40, 20:40] = 255
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    return path


# -- only regular files are opened -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [read_image, read_mask, read_yaml, read_card, lambda p: read_json(p, remedy=""), lambda p: read_manifest(p, p)],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "loop", "dangling", "long"])
def test_what_is_no_file_is_named_and_never_opened(tmp_path: Path, kind: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone.png")
    else:
        path = tmp_path / ("x" * 300)
    with pytest.raises(MetasegError) as caught:
        read(path)
    said = {"pipe": "named pipe", "device": "a device", "socket": "a socket", "loop": "circle", "dangling": "not there"}
    assert said.get(kind, "longer than any") in str(caught.value) or "no such" in str(caught.value)


def test_a_pipe_beside_scans_is_a_problem_and_the_scans_are_predicted(tmp_path: Path, trained: Path) -> None:
    picture(tmp_path / "in/good.png")
    os.mkfifo(tmp_path / "in/pipe.png")
    config = PredictConfig(inputs=(str(tmp_path / "in"),), model=str(trained), out=tmp_path / "out", overlay=False)
    result = predict(config, Silent())
    assert [scan.name for scan in result.document.scans] == ["good"]
    assert [(p.file.name, p.reason) for p in result.problems] == [("pipe.png", "a named pipe (FIFO), not a file")]


def test_a_list_in_a_data_set_names_nothing_outside_it(tmp_path: Path) -> None:
    root = tmp_path / "Task01"
    for folder in ("imagesTr", "labelsTr"):
        mask(root / folder / "a.png")
    picture(root / "imagesTr/a.png")
    secret = picture(tmp_path / "secret.png")
    training = [
        {"image": image, "label": "./labelsTr/a.png"} for image in ("./imagesTr/a.png", "../secret.png", str(secret))
    ]
    (root / "dataset.json").write_text(json.dumps({"training": training}))
    result = prepare(PrepareConfig(raw=root, out=tmp_path / "prepared", workers=1), Silent())
    assert [case.case for case in result.cases] == ["a"]
    assert [p.reason for p in result.problems] == ["listed, but outside the folder"] * 2


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_no_table_holds_is_a_problem_and_the_others_go_on(
    tmp_path: Path, trained: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in ("good1", "good2", name):
        picture(tmp_path / f"raw/images/{case}.png", len(case))
        mask(tmp_path / f"raw/masks/{case}.png")
    prepared = prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "prepared", workers=1), Silent())
    assert sorted(case.case for case in prepared.cases) == ["good1", "good2"]
    assert sum("its name holds" in p.reason for p in prepared.problems) == 2
    config = PredictConfig(
        inputs=(str(tmp_path / "raw/images"), str(tmp_path / f"raw/images/{name}.png")),
        model=str(trained),
        out=tmp_path / "out",
        overlay=False,
    )
    predicted = predict(config, Silent())
    assert sorted(scan.name for scan in predicted.document.scans) == ["good1", "good2"]
    assert {p.reason for p in predicted.problems} == {odd_name(name)}
    sys.argv = ["metaseg", "prepare", str(tmp_path / "raw"), "--out", str(tmp_path / "prepared")]
    with pytest.raises(SystemExit):
        main()
    said = "".join(capsys.readouterr())
    assert "\x1b[31m" not in said
    assert "its name holds" in said


def test_the_longest_names_that_disks_take_get_results(tmp_path: Path, trained: Path) -> None:
    names = ["n" * 251, "ü" * 125]  # with .png 255 and 254 bytes
    for name in names:
        picture(tmp_path / f"{name}.png")
    config = PredictConfig(inputs=(str(tmp_path),), model=str(trained), out=tmp_path / "out", uncertainty=True)
    result = predict(config, Silent())
    assert result.problems == ()
    assert all(path.exists() for scan in result.document.scans for path in scan.files)
    atomic_write_text(tmp_path / ("ü" * 127), "x")
    assert (tmp_path / ("ü" * 127)).read_text() == "x"


@pytest.mark.parametrize("text", ["..", ".", "", "a/b", "../../a", "/etc/passwd", "a\\b", "a\x00b", "ü" * 300, "con"])
def test_case_names_become_names_of_files(text: str) -> None:
    name = file_name(text)
    assert Path(name).name == name
    assert len(f"{name}_probability_metastasis.nii.gz".encode()) < 255
    assert name not in (".", "..")


def test_different_long_names_stay_different() -> None:
    assert file_name("x" * 300 + "1") != file_name("x" * 300 + "2")


def test_cells_of_a_manifest_are_files_or_problems_of_their_line(tmp_path: Path) -> None:
    picture(tmp_path / "raw/a.png")
    mask(tmp_path / "raw/m.png")
    cells = ["a.png", "x" * 5000, "/etc/passwd", "/dev/zero", "a\x00b.png", "../" * 2000]
    lines = [f"..{n},p{n},{cell},m.png" for n, cell in enumerate(cells)]
    (tmp_path / "cases.csv").write_text("case,patient,image,mask\n" + "\n".join(lines))
    result = prepare(
        PrepareConfig(raw=tmp_path / "raw", manifest=tmp_path / "cases.csv", out=tmp_path / "prepared", workers=1),
        Silent(),
    )
    assert [case.patient for case in result.cases] == ["p0"]
    assert len([p for p in result.problems if p.left_out]) == len(cells) - 1


def test_a_cell_longer_than_csv_reads_is_said(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case,image\n" + "a" * 200_000 + ",b.png\n")
    with pytest.raises(InputError, match="not a table"):
        read_manifest(tmp_path / "cases.csv", tmp_path)


# -- a header names no other file ------------------------------------------------------------------------------------

NRRD = "NRRD0004\ntype: uint8\ndimension: 2\nsizes: 8 8\nencoding: raw\ndata file: {}\n\n"
META = "NDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\nElementSpacing = 1 1\nElementDataFile = {}\n"


@pytest.mark.parametrize(("suffix", "header"), [(".nhdr", NRRD), (".nrrd", NRRD), (".mhd", META), (".mha", META)])
@pytest.mark.parametrize("target", ["/etc/hostname", "../secret.raw", "sub/secret.raw", "link.raw"])
def test_a_zip_whose_header_names_another_file_is_refused(
    tmp_path: Path, trained: Path, suffix: str, header: str, target: str
) -> None:
    (tmp_path / "secret.raw").write_bytes(b"s" * 64)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.writestr(f"scan{suffix}", header.format(target))
        archive.writestr("sub/secret.raw", b"s" * 64)
    config = PredictConfig(inputs=(str(tmp_path / "scan.zip"),), model=str(trained), out=tmp_path / "out")
    result = predict(config, Silent())
    assert result.scans == ()
    assert len(result.problems) == 1


# -- the app ---------------------------------------------------------------------------------------------------------


def page(trained: Path) -> object:
    from streamlit.testing.v1 import AppTest

    os.environ["METASEG_UI_RUNS"] = str(trained.parent)
    os.environ.pop("METASEG_UI_MODEL", None)
    return AppTest.from_file(str(APP), default_timeout=60).run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("suffix", "header"), [(".nrrd", NRRD), (".mha", META)])
def test_an_uploaded_header_shows_no_file_of_the_server(trained: Path, suffix: str, header: str) -> None:
    shown = page(trained)
    shown.file_uploader[0].set_value((f"scan{suffix}", header.format("/etc/hostname").encode(), "image/x")).run()
    assert not shown.exception
    assert "names another file" in shown.error[0].value
    assert not shown.get("download_button")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["../../evil.png", "..\\..\\evil.png", "![x](http://evil.example/x.png).png"])
def test_names_of_uploads_are_names_and_nothing_else(trained: Path, tmp_path: Path, name: str) -> None:
    shown = page(trained)
    shown.file_uploader[0].set_value((name, picture(tmp_path / "a.png").read_bytes(), "image/png")).run()
    assert not shown.exception
    assert shown.get("download_button")
    shown.file_uploader[0].set_value((name, b"no picture", "image/png")).run()
    assert "![" not in shown.error[0].value


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from metaseg_cli.ui import login

    monkeypatch.setenv(HASH_VARIABLE, hash_password("correct horse"))
    monkeypatch.setattr(login, "DELAY_S", 0.3)
    yield
    login._admitted.clear()


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_shown_before_the_login(trained: Path, login: None) -> None:
    shown = page(trained)
    assert not shown.get("file_uploader")
    assert not shown.selectbox
    began = time.monotonic()
    shown.text_input[0].set_value("wrong")
    shown.button[0].click().run()
    assert time.monotonic() - began > 0.3
    assert not shown.get("file_uploader")
    assert "not the password" in shown.error[0].value
    shown.text_input[0].set_value("correct horse")
    shown.button[0].click().run()
    assert shown.get("file_uploader")
    assert not shown.text_input


def test_a_password_is_kept_as_a_salted_hash() -> None:
    one, two = hash_password("correct horse"), hash_password("correct horse")
    assert one != two
    assert "correct" not in one
    assert is_password("correct horse", one)
    assert not is_password("wrong horse", one)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_computers_need_a_password_or_the_users_word(host: str) -> None:
    with pytest.raises(ConfigError, match="--password, or --no-auth"):
        ServeUiConfig(host=host)
    ServeUiConfig(host=host, password=True)
    ServeUiConfig(host=host, no_auth=True)
    with pytest.raises(ConfigError, match="exclude"):
        ServeUiConfig(host=host, password=True, no_auth=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_computer_needs_none(host: str) -> None:
    ServeUiConfig(host=host)


def test_without_a_terminal_the_password_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from metaseg_cli.core.password import VARIABLE, ask_password

    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=VARIABLE):
        ask_password()
    monkeypatch.setenv(VARIABLE, "correct horse")
    assert ask_password() == "correct horse"


# -- nobody else is asked --------------------------------------------------------------------------------------------

# Every connection and every look-up that Python makes, as the interpreter itself reports them.
RECORDER = """
import os, sys
log = os.open(os.environ["METASEG_TEST_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = values[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = values
    else:
        return
    if isinstance(address, tuple):
        os.write(log, f"{address[0]}\\n".encode())
sys.addaudithook(note)
"""
NOBODY_ELSE = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "None"}


def recorded(folder: Path) -> tuple[dict[str, str], Path]:
    """An environment in which every Python process writes down whom it calls, and the file it writes to."""
    (folder / "hooks").mkdir()
    (folder / "hooks/sitecustomize.py").write_text(RECORDER)
    record = folder / "record.txt"
    paths = [str(folder / "hooks"), str(APP.parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "METASEG_TEST_RECORD": str(record)}, record


@contextmanager
def serving(environment: dict[str, str], *options: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "metaseg_cli", "serve-ui", "--port", str(port), *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                if ask(port, "GET", "/_stcore/health") == 200:
                    break
            except OSError:
                time.sleep(0.25)
        else:
            pytest.fail("the app did not come up within a minute")
        yield port
    finally:
        process.terminate()
        process.wait(20)


def ask(port: int, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    status = connection.getresponse().status
    connection.close()
    return status


def open_websocket(port: int, origin: str, host: str | None = None) -> int:
    """The status with which a page of *origin* is answered: 101 lets it in."""
    headers = {"Host": host} if host else {}
    return ask(
        port,
        "GET",
        "/_stcore/stream",
        Connection="Upgrade",
        Upgrade="websocket",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==",
        Origin=origin,
        **headers,
    )


def test_the_recorder_records(tmp_path: Path) -> None:
    environment, record = recorded(tmp_path)
    script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 1))"
    subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert record.read_text() == "192.0.2.1\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_app_calls_nobody_when_it_starts_or_a_page_of_another_site_calls(tmp_path: Path, host: str) -> None:
    environment, record = recorded(tmp_path)
    with serving(environment, "--host", host, *(["--no-auth"] if host == "0.0.0.0" else [])) as port:
        assert ask(port, "GET", "/") == 200
        assert open_websocket(port, f"http://127.0.0.1:{port}") == 101
        assert open_websocket(port, "http://other.example") == 403
        if host == "127.0.0.1":  # another site whose name was made to mean this computer
            assert open_websocket(port, f"http://other.example:{port}", host=f"other.example:{port}") == 403
    assert set(record.read_text().split()) <= NOBODY_ELSE


def test_uploads_wait_for_the_login(tmp_path: Path) -> None:
    environment, record = recorded(tmp_path)
    environment["METASEG_UI_PASSWORD"] = "correct horse"
    with serving(environment, "--host", "0.0.0.0", "--password") as port:
        for method in ("PUT", "POST", "DELETE"):
            assert ask(port, method, "/_stcore/upload_file/session/file") == 403
    assert set(record.read_text().split()) <= NOBODY_ELSE


PREDICTION = """
import sys
from streamlit.testing.v1 import AppTest
app, scan = sys.argv[1:]
page = AppTest.from_file(app, default_timeout=120).run()
page.file_uploader[0].set_value(("scan.png", open(scan, "rb").read(), "image/png")).run()
assert not page.exception, page.exception
assert page.get("download_button")
"""


@pytest.mark.slow
def test_a_prediction_in_the_app_calls_nobody(tmp_path: Path, trained: Path) -> None:
    environment, record = recorded(tmp_path)
    environment["METASEG_UI_RUNS"] = str(trained.parent)
    scan = picture(tmp_path / "scan.png")
    command = [sys.executable, "-c", PREDICTION, str(APP), str(scan)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(record.read_text().split()) <= NOBODY_ELSE
