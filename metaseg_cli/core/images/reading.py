"""One door for every format."""

from __future__ import annotations

from pathlib import Path

from metaseg_cli.core.images.formats import PICTURES, VOLUMES, is_picture, suffix_of
from metaseg_cli.core.images.pictures import read_picture
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.images.volumes import read_volume
from metaseg_cli.errors import InputError


def read_image(path: Path) -> Volume:
    """Read a picture or volume with the numbers of its file, as ``(C, Z, Y, X)``.

    Raises InputError for what is missing, not an image, damaged, or not finite.
    """
    if not path.exists():
        raise InputError("no such file", where=path, remedy="check the path")
    if path.is_dir():
        raise InputError("a folder, not an image", where=path, remedy="name the files in it")
    if path.stat().st_size == 0:
        raise InputError("the file is empty (0 bytes)", where=path, remedy="copy it again from its source")
    if is_picture(path):
        return read_picture(path)
    if suffix_of(path) in VOLUMES:
        return read_volume(path)
    formats = ", ".join(s[1:] for s in PICTURES + VOLUMES)
    raise InputError(
        f"not a format that metaseg reads ({suffix_of(path) or 'no suffix'})",
        where=path,
        remedy=f"convert it to one of {formats}",
    )
