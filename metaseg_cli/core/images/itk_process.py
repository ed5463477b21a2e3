"""The program that ``itk_decoder`` runs in a separate process: it reads files with SimpleITK, one after the other.

A request is a line of JSON, ``[path, name of the ImageIO]``; the answer is a line of JSON, then the voxels' bytes.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO


def _answer(sitk: Any, path: str, image_io: str) -> tuple[dict[str, Any], bytes]:
    try:
        image = sitk.ReadImage(path, imageIO=image_io)
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        return {"error": lines[-1].removeprefix("sitk::ERROR: ")}, b""
    array = sitk.GetArrayViewFromImage(image)
    return {
        "shape": array.shape,
        "dtype": array.dtype.str,
        "components": image.GetNumberOfComponentsPerPixel(),
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
        "direction": image.GetDirection(),
        "metadata": {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()},
    }, array.tobytes()


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until *requests* ends."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for line in iter(requests.readline, b""):
        head, voxels = _answer(sitk, *json.loads(line))
        answers.write(json.dumps({**head, "bytes": len(voxels)}).encode() + b"\n")
        answers.write(voxels)
        answers.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
