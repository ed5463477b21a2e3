"""What the viewer gets of a prediction, and its modules under node."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.images import Volume
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.ui.viewer.component import script, viewer_arrays
from tests.common import PACKAGE

VIEWER = PACKAGE / "ui" / "viewer"
SHAPE = (6, 8, 10)  # z, y, x in the patient: to the head, the back, the left


def unpacked(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:4], "little")
    return json.loads(content[4 : 4 + length]), content[4 + length :]


def stored(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[Volume, NDArray[np.bool_]]:
    """A scan with one bright voxel at the patient's right, front and foot end, and its mask, stored along other axes.

    Index axis k (x, y, z) runs along patient axis ``order[k]``, backwards where ``signs[k]`` is −1.
    """
    patient = np.zeros(SHAPE, np.float32)
    patient[1, 2, 3] = 9.0
    array = patient.transpose([2 - order[2 - i] for i in range(3)])
    for k, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, 2 - k)
    direction = np.zeros((3, 3))
    origin = np.zeros(3)
    for k, sign in enumerate(signs):
        direction[order[k], k] = sign
        if sign < 0:
            origin[order[k]] = array.shape[2 - k] - 1
    volume = Volume(
        array=array[None].copy(),
        spacing_mm=(1.0, 1.0, 1.0),
        source=Path("scan.nii.gz"),
        origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(direction.ravel()),
    )
    return volume, array > 0


def predicted(volume: Volume, mask: NDArray[np.bool_]) -> Prediction:
    probability = np.where(mask, 0.9, 0.1).astype(np.float32)
    _, lesions = find_lesions(mask, volume.spacing_mm, probability)
    return Prediction(
        mask=mask.astype(np.uint8),
        masks=mask[None],
        probabilities=probability[None],
        lesions={"metastasis": lesions},
        measurements={"metastasis": []},
        source=volume,
        index_region="metastasis",
    )


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_however_a_scan_is_stored_its_marker_is_at_the_same_place(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    arrays = viewer_arrays("scan", predicted(*stored(order, signs)), 0.5, 0.5)
    assert arrays.data["shape"] == list(SHAPE)
    assert arrays.data["oriented"]
    assert arrays.data["lesions"] == [{"number": 1, "at": [1, 2, 3], "box": [[1, 2], [2, 3], [3, 4]]}]
    for slot, kind, value in (("image0", "<u2", 65535), ("probability", "u1", 230), ("mask", "u1", 1)):
        header, content = unpacked(arrays.carriers[slot])
        values = np.frombuffer(content, kind).reshape(SHAPE)
        assert header["slot"] == slot
        assert values[1, 2, 3] == value == values.max()
        assert np.count_nonzero(values == value) == 1


def test_stored_brightness_leads_back_to_the_scans_own() -> None:
    volume, mask = stored((0, 1, 2), (1, 1, 1))
    volume.array[:] = np.random.default_rng(0).normal(-500, 300, volume.array.shape)
    header, content = unpacked(viewer_arrays("scan", predicted(volume, mask), 0.5, 0.5).carriers["image0"])
    values = header["low"] + header["step"] * np.frombuffer(content, "<u2").reshape(SHAPE)
    np.testing.assert_allclose(values, volume.array[0], atol=header["step"])


def test_of_regions_that_overlap_the_smaller_is_seen() -> None:
    volume, mask = stored((0, 1, 2), (1, 1, 1))
    whole = np.zeros_like(mask)
    whole[:3, :4, :5] = True
    both = predicted(volume, mask)
    both = Prediction(**{**vars(both), "masks": np.stack([whole, mask]), "probabilities": np.zeros((2, *SHAPE)),
                         "lesions": {"whole": [], "metastasis": both.lesions["metastasis"]}})  # fmt: skip
    _, content = unpacked(viewer_arrays("scan", both, 0.5, 0.5).carriers["mask"])
    numbers = np.frombuffer(content, "u1").reshape(SHAPE)
    assert numbers[1, 2, 3] == 2
    assert np.count_nonzero(numbers == 1) == whole.sum() - 1


def test_the_scripts_are_small_and_call_nobody() -> None:
    joined = script("viewer") + script("carrier") + (VIEWER / "viewer.css").read_text()
    assert len(joined.encode()) < 60_000
    assert "import " not in "".join(line for line in joined.splitlines(keepends=True) if line.startswith("import"))
    assert joined.count("export default") == 2
    for word in ("http", "fetch(", "XMLHttpRequest", "WebSocket", "eval(", "innerHTML", "localStorage"):
        assert word not in joined


CHECKS = """
import assert from "node:assert";
import { PLANES, eachVoxel, placeOf, planeSize, voxelAt } from "%(folder)s/planes.js";
import { automaticWindow, countFrom, isRim, reaches } from "%(folder)s/paint.js";
import { decode, drop, put, take, whenChanged } from "%(folder)s/store.js";

const shape = [3, 4, 5];
for (const plane of Object.values(PLANES)) {
  const [rows, columns] = planeSize(plane, shape);
  const at = [1, 2, 3];
  const seen = [];
  eachVoxel(plane, shape, at[plane.through], (place, voxel) => (seen[place] = voxel));
  assert.equal(seen.length, rows * columns);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const [z, y, x] = voxelAt(plane, shape, at, row, column);
      assert.equal(seen[row * columns + column], (z * 4 + y) * 5 + x);
      assert.deepEqual(placeOf(plane, shape, [z, y, x]), [row, column]);
    }
}
assert.equal(countFrom(new Uint8Array([0, 127, 128, 255]), 0.5), 2);
assert.ok(reaches(1, 0) && !reaches(0, 0));
assert.deepEqual(automaticWindow(new Uint16Array(1000).map((_, i) => i)), [10, 995]);
const numbers = new Uint8Array(25);
for (const place of [6, 7, 8, 11, 12, 13, 16, 17, 18]) numbers[place] = 1;
assert.ok(isRim(numbers, 6, 5, 5) && !isRim(numbers, 12, 5, 5));
const header = new TextEncoder().encode(JSON.stringify({ slot: "a", id: "1", type: "uint16" }));
const bytes = new Uint8Array(1 + 4 + header.length + 4);
new DataView(bytes.buffer).setUint32(1, header.length, true);
bytes.set(header, 5);
bytes.set([1, 2, 3, 4], 5 + header.length);
const array = decode(bytes.subarray(1)); // begins at an odd byte, as it does in the browser
assert.deepEqual([...array.values], [0x0201, 0x0403]);
let heard = 0;
const stop = whenChanged(() => heard++);
put("a", array);
assert.equal(take("a", "1"), array);
assert.equal(take("a", "2"), null);
drop("a", { another: "array" });
assert.equal(take("a", "1"), array);
drop("a", array);
stop();
put("a", array);
assert.equal(heard, 1);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_the_modules_draw_and_count_as_they_should(tmp_path: Path) -> None:
    for module in VIEWER.glob("*.js"):
        shutil.copy(module, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "checks.mjs").write_text(CHECKS % {"folder": "."})
    result = subprocess.run(["node", "checks.mjs"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
