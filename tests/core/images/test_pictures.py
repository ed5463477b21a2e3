"""Every kind of picture shows what it shows in other programs; masks in all of them mean what they mean there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.images import (
    channels_are_equal,
    inverted_mask,
    orient_like_image,
    read_image,
    read_mask,
    write_mask,
)
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError
from tests.picture_files import (
    BINARY,
    COLOUR,
    GREY,
    GREY_16,
    KINDS,
    STACK,
    by_pillow,
    by_tifffile,
    chunk,
    palette_image,
    png,
)

DISC = (np.hypot(*np.mgrid[-10:10, -15:15]) < 6).astype(np.uint8)
LABELS = np.stack([DISC, DISC * 2, DISC * 0])


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_gives_the_numbers_that_were_saved(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, expected = KINDS[name]
    image = read_image(written(tmp_path / name, data)).array
    assert image.shape == expected.shape
    np.testing.assert_array_equal(image, expected)
    assert capfd.readouterr() == ("", "")


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(written(tmp_path / "a.png", by_tifffile(*STACK))).array, STACK[None])
    np.testing.assert_array_equal(read_image(written(tmp_path / "a.tif", by_pillow(GREY, "PNG"))).array[0, 0], GREY)


def test_thumbnails_are_left_out_and_said(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY, metadata=None)
        file.write(GREY[::4, ::4], subfiletype=1, metadata=None)
        file.write(GREY[::-1], metadata=None)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.array[0], STACK[:2])
    assert "thumbnails" in image.notes[0]


def test_a_pyramid_in_sub_directories_is_one_slice(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY, subifds=2)
        file.write(GREY[::2, ::2], subfiletype=1)
        file.write(GREY[::4, ::4], subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").array, GREY[None, None])


@pytest.mark.parametrize(
    "pages",
    [(GREY, GREY[:9]), (GREY, GREY_16), (GREY, COLOUR), (GREY, GREY, GREY, BINARY)],
    ids=["size", "type", "colour", "last"],
)
def test_pages_that_differ_are_refused(tmp_path: Path, pages: tuple[NDArray[Any], ...]) -> None:
    with pytest.raises(InputError, match="pages differ"):
        read_image(written(tmp_path / "a.tif", by_tifffile(*pages)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (by_tifffile(np.stack([STACK, STACK]), photometric="minisblack"), "one stack"),
        (by_tifffile(GREY.astype(np.complex64)), "complex"),
        (by_tifffile(GREY.astype(np.float32), photometric="miniswhite"), "MinIsWhite"),
        (by_tifffile(np.where(GREY > 250, np.nan, GREY).astype(np.float32) * np.nan), "not finite"),
        (by_tifffile(COLOUR, photometric="cielab"), "photometric"),
        (by_pillow(GREY, "GIF", save_all=True, append_images=[Image.fromarray(GREY[::-1])]), "animation of 2"),
        (by_pillow(COLOUR, "WEBP", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]), "animation of 2"),
        (by_pillow(GREY, "PNG", save_all=True, append_images=[Image.fromarray(GREY[::-1])]), "animation of 2"),
    ],
    ids=["two-stacks", "complex", "float-miniswhite", "nan", "cielab", "gif", "webp", "apng"],
)
def test_what_has_no_one_meaning_is_refused_with_a_remedy(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_image(written(tmp_path / "a.tif", data))
    assert caught.value.remedy


def test_of_several_pictures_of_a_camera_the_first_is_read_and_said(tmp_path: Path) -> None:
    pictures = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1])]
    data = by_pillow(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    image = read_image(written(tmp_path / "a.jpg", data))
    np.testing.assert_array_equal(image.array, KINDS["first.jpg"][1])
    assert "2 pictures" in image.notes[0]


def test_an_ome_tiff_opens_no_other_file(tmp_path: Path) -> None:
    by_name = {"a.ome.tif": STACK, "b.ome.tif": STACK + 1}
    for name, array in by_name.items():
        tifffile.imwrite(tmp_path / name, array, photometric="minisblack", ome=True, metadata={"axes": "ZYX"})
    text = str(tifffile.tiffcomment(tmp_path / "a.ome.tif")).replace(
        "</Pixels>", '<TiffData IFD="0" FirstZ="0"><UUID FileName="b.ome.tif">urn:uuid:1</UUID></TiffData></Pixels>'
    )
    tifffile.tiffcomment(tmp_path / "a.ome.tif", text.encode())
    try:
        image = read_image(tmp_path / "a.ome.tif")
    except InputError:
        return
    np.testing.assert_array_equal(image.array, STACK[None])


def test_true_colour_is_not_taken_for_grey_whatever_its_range(tmp_path: Path) -> None:
    for kind, colour in (("16", COLOUR.astype(np.uint16)), ("float", (COLOUR / 255).astype(np.float32))):
        image = read_image(written(tmp_path / f"{kind}.tif", by_tifffile(colour, photometric="rgb")))
        assert not channels_are_equal(image)
        equal = colour[..., :1].repeat(3, axis=-1)
        assert channels_are_equal(read_image(written(tmp_path / "g.tif", by_tifffile(equal, photometric="rgb"))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_pictures_of_every_format_are_seen_upright(
    tmp_path: Path, orientation: int, kind: str, options: dict[str, Any]
) -> None:
    path = written(tmp_path / "a", by_pillow(COLOUR, kind, exif=_exif(orientation), **options))
    image = read_image(path.rename(tmp_path / f"a.{kind.lower()}"))
    with Image.open(tmp_path / f"a.{kind.lower()}") as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(image.array[:, 0], np.moveaxis(upright, -1, 0))
    assert image.exif_orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_stack_is_turned_upright_and_its_mask_goes_back(tmp_path: Path, orientation: int) -> None:
    tag = [(274, 3, 1, orientation, False)]
    image = read_image(written(tmp_path / "a.tif", by_tifffile(*STACK, extratags=tag, metadata=None)))
    single = read_image(written(tmp_path / "b.png", by_pillow(GREY, "PNG", exif=_exif(orientation))))
    np.testing.assert_array_equal(image.array[:, :1], single.array)
    label = (image.array[0] > 120).astype(np.uint8)
    write_mask(tmp_path / "m.tif", label, image)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "m.tif"), (STACK > 120) * 255)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif").array[0], label)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("top", [1, 255])
def test_masks_of_every_type_are_labels(tmp_path: Path, kind: str, top: int) -> None:
    if top == 255 and kind in "?i1":
        top = 1
    data = by_tifffile((DISC * top).astype(kind), photometric="minisblack")
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.tif", data)).array[0, 0], DISC)


def test_palette_stacks_are_labels(tmp_path: Path) -> None:
    pages = [palette_image(page) for page in LABELS]
    data = by_pillow(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.tif", data)).array[0], LABELS)


@pytest.mark.parametrize("label", [1, 2, 4])
def test_a_palette_mask_of_one_label_keeps_its_number(tmp_path: Path, label: int) -> None:
    data = by_pillow(palette_image(DISC * np.uint8(label)), "PNG")
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.png", data)).array[0, 0], DISC * label)


def test_labels_in_four_bits_stay(tmp_path: Path) -> None:
    labels = DISC * 2
    labels[:3] = 7
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.png", png(labels, 4, 0))).array[0, 0], labels)


@pytest.mark.parametrize("value", [1, 200, 65535])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_sixteen_bit_masks_keep_small_values(tmp_path: Path, value: int, colour: int) -> None:
    disc = DISC.astype(np.uint16) * value
    samples = {0: [disc], 2: [disc] * 3, 4: [disc, disc * 0 + 65535], 6: [disc, disc, disc, disc * 0 + 65535]}[colour]
    data = png(np.dstack(samples), 16, colour)
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.png", data)).array[0, 0], DISC)


def test_a_dark_colour_is_lesion_as_a_bright_one_is(tmp_path: Path) -> None:
    """As in the palette of Pascal VOC, saved in RGB."""
    picture = np.stack([DISC * 255, DISC * 0, DISC * 0], -1).astype(np.uint8)
    picture[:3, :4] = (0, 64, 0)
    expected = DISC.copy()
    expected[:3, :4] = 1
    np.testing.assert_array_equal(
        read_mask(written(tmp_path / "m.png", by_pillow(picture, "PNG"))).array[0, 0], expected
    )


@pytest.mark.parametrize("levels", [(1, 255), (64, 255), (1, 2, 255), (30, 100, 255)])
def test_grey_levels_without_one_meaning_are_refused_not_lost(tmp_path: Path, levels: tuple[int, ...]) -> None:
    """A part of its own below half would vanish: a lesion by another number, or by a number for 'ignore'."""
    mask = np.zeros((20, 30), np.uint8)
    for i, level in enumerate(levels):
        mask[2:6, 2 + 6 * i : 6 + 6 * i] = level
    with pytest.raises(InputError, match=r"ignore|evenly"):
        read_mask(written(tmp_path / "m.png", by_pillow(mask, "PNG")))


def test_the_smooth_edge_of_a_lesion_is_cut_at_half(tmp_path: Path) -> None:
    mask = DISC * np.uint8(255)
    mask[4, 12:18] = 60
    np.testing.assert_array_equal(
        read_mask(written(tmp_path / "m.png", by_pillow(mask, "PNG"))).array[0, 0], (mask >= 128).astype(np.uint8)
    )


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_noise_of_compression_is_no_label_whatever_the_name_says(tmp_path: Path, kind: str) -> None:
    noise = (np.random.default_rng(0).integers(0, 5, (64, 64)) * 3).astype(np.uint8)
    noise = np.repeat(noise[..., None], 3, -1)
    mask = read_mask(written(tmp_path / "m.png", by_pillow(noise, kind, quality=90)))
    assert not mask.array.any()


@pytest.mark.parametrize("shade", [0, 90, 255])
@pytest.mark.parametrize("opaque", [1, 255])
@pytest.mark.parametrize("kind", ["rgba", "grey", "rgba-16", "grey-16", "tiff", "palette", "webp"])
def test_a_mask_in_the_alpha_channel_is_taken_and_said(tmp_path: Path, shade: int, opaque: int, kind: str) -> None:
    alpha = DISC * np.uint8(opaque)
    plane = np.full_like(DISC, shade)
    rgba, grey = np.dstack([plane, plane, plane, alpha]), np.dstack([plane, alpha])
    palette = by_pillow(palette_image(DISC, np.full((2, 3), shade, np.uint8)), "PNG", transparency=bytes([0, opaque]))
    data = {
        "rgba": by_pillow(rgba, "PNG"),
        "grey": by_pillow(Image.fromarray(grey, "LA"), "PNG"),
        "rgba-16": png(rgba.astype(np.uint16) * 257, 16, 6),
        "grey-16": png(grey.astype(np.uint16) * 257, 16, 4),
        "tiff": by_tifffile(rgba, photometric="rgb", extrasamples=["unassalpha"]),
        "palette": palette,
        "webp": by_pillow(rgba, "WEBP", lossless=True, exact=True),
    }[kind]
    mask = read_mask(written(tmp_path / "m.png", data))
    np.testing.assert_array_equal(mask.array[0, 0], DISC)
    assert "alpha" in " ".join(mask.notes)


@pytest.mark.parametrize("shade", [0, 255])
def test_where_nothing_is_opaque_the_mask_is_empty(tmp_path: Path, shade: int) -> None:
    rgba = np.dstack([np.full_like(DISC, shade)] * 3 + [DISC * 0])
    mask = read_mask(written(tmp_path / "m.png", by_pillow(rgba, "PNG")))
    assert not mask.array.any()


def test_where_colour_and_alpha_differ_the_colour_is_the_mask(tmp_path: Path) -> None:
    rgba = np.dstack([DISC * 255, DISC * 255, DISC * 255, 255 - DISC[::-1] * 9])
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.png", by_pillow(rgba, "PNG"))).array[0, 0], DISC)


def test_one_transparent_value_is_an_alpha_channel_too(tmp_path: Path) -> None:
    data = png(DISC * 5, 8, 0, extra=chunk(b"tRNS", b"\0\0"))
    np.testing.assert_array_equal(read_mask(written(tmp_path / "m.png", data)).array[0, 0], DISC * 5)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_masks_are_not_written_in_formats_that_change_them(tmp_path: Path, suffix: str) -> None:
    like = read_image(written(tmp_path / "a.png", by_pillow(DISC, "PNG")))
    with pytest.raises(InputError, match=suffix[1:]):
        write_mask(tmp_path / f"m{suffix}", DISC[None], like)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# -- what is doubtful ------------------------------------------------------------------------------------------------


def test_inverted_masks_are_told_from_large_lesions() -> None:
    assert inverted_mask(DISC[None]) is None
    assert inverted_mask(DISC[None] * 0) is None
    large = np.zeros((1, 20, 30), np.uint8)
    large[:, 1:, 1:] = 1
    assert inverted_mask(large) is None
    assert "96.5%" in str(inverted_mask(1 - (np.hypot(*np.mgrid[-10:10, -15:15]) < 2.7)[None].astype(np.uint8)))
    assert "border" in str(inverted_mask(1 - DISC[None]))
    assert inverted_mask(DISC[None] + 1, foreground=(2,)) is None


def test_a_mask_drawn_on_the_stored_pixels_is_turned_with_its_image(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        image = read_image(written(tmp_path / "a.png", by_pillow(GREY, "PNG", exif=_exif(orientation))))
        drawn = read_mask(written(tmp_path / "m.png", by_pillow(BINARY.astype(np.uint8), "PNG")))
        mask, doubt = orient_like_image(drawn, image)
        sideways = orientation > 4
        assert mask.shape == image.shape
        assert (doubt is not None) == (orientation in (2, 3, 4))
        np.testing.assert_array_equal(mask.array[0] > 0, image.array[0] > 120 if sideways else BINARY[None])
        assert len(mask.notes) == (1 if sideways else 0)


def _pictures(folder: Path, masks: list[NDArray[Any]], **of_images: Any) -> Path:
    rng = np.random.default_rng(0)
    for number, mask in enumerate(masks):
        image = rng.integers(1, 255, mask.shape, dtype=np.uint8)
        written(folder / "raw" / "images" / f"c{number}.png", by_pillow(image, "PNG", **of_images))
        written(folder / "raw" / "masks" / f"c{number}.png", by_pillow(mask * np.uint8(255), "PNG"))
    return folder / "raw"


def _doubts(raw: Path, out: Path, *, strict: bool = False) -> list[str]:
    result = prepare(PrepareConfig(raw=raw, out=out, workers=1, strict=strict), Silent())
    assert not any(problem.left_out for problem in result.problems)
    return [f"{problem.file.name}: {problem.reason}" for problem in result.problems]


def test_a_folder_whose_masks_are_all_empty_is_doubtful_one_empty_mask_is_not(tmp_path: Path) -> None:
    assert _doubts(_pictures(tmp_path / "some", [DISC, DISC * 0, DISC]), tmp_path / "a") == []
    raw = _pictures(tmp_path / "none", [DISC * 0] * 3)
    assert _doubts(raw, tmp_path / "b") == ["c0.png: all masks are empty (3 case(s))"]
    with pytest.raises(InputError, match="all masks are empty"):
        _doubts(raw, tmp_path / "b", strict=True)


def test_inverted_masks_are_named_and_strict_fails(tmp_path: Path) -> None:
    raw = _pictures(tmp_path, [DISC, 1 - DISC, DISC])
    assert [d[:34] for d in _doubts(raw, tmp_path / "a")] == ["c1.png: the mask covers the whole "]
    with pytest.raises(InputError, match="inverted"):
        _doubts(raw, tmp_path / "a", strict=True)


def test_a_mask_without_its_images_orientation_is_named_where_it_fits_both_ways(tmp_path: Path) -> None:
    turned = _pictures(tmp_path / "sideways", [DISC, DISC], exif=_exif(6))
    assert _doubts(turned, tmp_path / "a") == []
    upside_down = _pictures(tmp_path / "down", [DISC, DISC], exif=_exif(3))
    assert all("fits either way" in doubt for doubt in _doubts(upside_down, tmp_path / "b"))
    assert len(_doubts(upside_down, tmp_path / "b")) == 2


def test_images_of_kinds_that_are_not_read_are_named(tmp_path: Path) -> None:
    raw = _pictures(tmp_path, [DISC, DISC])
    for name in ("images/x.heic", "images/y.NPY", "z.jp2", ".hidden.avif"):
        written(raw / name, b"anything")
    result = prepare(PrepareConfig(raw=raw, out=tmp_path / "out", workers=1), Silent())
    assert sorted(p.file.name for p in result.problems) == ["x.heic", "y.NPY", "z.jp2"]


def test_webp_and_gif_make_cases_like_any_picture(tmp_path: Path) -> None:
    for number, kind in enumerate(("WEBP", "GIF")):
        options = {"lossless": True} if kind == "WEBP" else {}
        for folder, array in (("images", GREY + number), ("masks", BINARY * np.uint8(255))):
            written(tmp_path / "raw" / folder / f"c{number}.{kind.lower()}", by_pillow(array, kind, **options))
    result = prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    assert len(result.cases) == 2
    assert all(sum(case.lesion_voxels) == BINARY.sum() for case in result.cases)
