"""Every way in which people save pictures, masks and volumes reads right, and goes back where it came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageOps

from metaseg_cli.core.formats import stem_of, suffix_of
from metaseg_cli.core.images import Volume, as_grey, channels_are_equal, read_image, read_mask, write_mask, write_volume
from metaseg_cli.errors import InputError

DISC = (np.hypot(*np.mgrid[-10:10, -15:15]) < 6).astype(np.uint8)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(path, **options)
    return path


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        (DISC * 200, 1),
        (DISC.astype(np.uint16) * 60000, 1),
        (np.dstack([DISC * 50, DISC * 100, DISC * 200]), 3),
        (np.dstack([DISC * 50, DISC * 100, DISC * 200, DISC * 255]), 3),
    ],
    ids=["grey", "16-bit", "rgb", "rgba"],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures_keep_their_numbers(tmp_path: Path, array: np.ndarray, channels: int, suffix: str) -> None:
    image = read_image(saved(tmp_path / f"a{suffix}", array))
    assert image.array.shape == (channels, 1, 20, 30)
    assert image.spacing_mm is None
    expected = np.moveaxis(np.atleast_3d(array), -1, 0)[:channels]
    np.testing.assert_array_equal(image.array[:, 0], expected)


def test_pages_of_a_tiff_are_slices(tmp_path: Path) -> None:
    pages = [Image.fromarray(DISC * n) for n in (50, 100, 150)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    array = read_image(tmp_path / "a.tif").array
    assert array.shape == (1, 3, 20, 30)
    assert array.max(axis=(0, 2, 3)).tolist() == [50, 100, 150]


def test_sixteen_bit_colour_keeps_sixteen_bits(tmp_path: Path) -> None:
    import tifffile

    colour = np.dstack([DISC.astype(np.uint16) * n for n in (1000, 30000, 60000)])
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    assert read_image(tmp_path / "a.tif").array.max(axis=(1, 2, 3)).tolist() == [1000, 30000, 60000]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_obeyed_and_the_mask_goes_back_to_the_raw_grid(tmp_path: Path, orientation: int) -> None:
    picture = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30) // 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(image.array[0, 0], upright)
    mask = (upright > 100).astype(np.uint8)[None]
    write_mask(tmp_path / "m.png", mask, image)
    with Image.open(tmp_path / "m.png") as written:
        assert written.size == picture.size
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").array[0], mask)


def test_a_grey_picture_saved_in_colour_is_recognised(tmp_path: Path) -> None:
    grey = np.dstack([DISC * 200] * 3)
    image = read_image(saved(tmp_path / "a.jpg", grey, quality=90))
    assert channels_are_equal(image)
    assert as_grey(image).array.shape[0] == 1
    colour = read_image(saved(tmp_path / "b.png", np.dstack([DISC * 50, DISC * 100, DISC * 200])))
    assert not channels_are_equal(colour)


def test_volumes_carry_their_geometry(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
    image.SetSpacing((0.5, 0.7, 3.0))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    volume = read_image(tmp_path / "a.nii.gz")
    assert volume.array.shape == (1, 4, 5, 6)
    assert volume.spacing_mm == pytest.approx((3.0, 0.7, 0.5))
    write_mask(tmp_path / "m.nii.gz", (volume.array[0] > 0).astype(np.uint8), volume)
    back = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    assert back.GetSize() == image.GetSize()
    for got, wanted in zip(
        (*back.GetSpacing(), *back.GetOrigin(), *back.GetDirection()),
        (*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()),
        strict=True,
    ):
        assert got == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.png", b"this is text", "not an image"),
        ("a.jpg", b"", "empty"),
        ("a.nii.gz", b"", "empty"),
        ("a.nii.gz", b"not gzip at all", "not a NIfTI"),
        ("a.txt", b"hello", "not a format"),
    ],
)
def test_bad_files_are_named_with_reason_and_remedy(
    tmp_path: Path, name: str, content: bytes, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_image(path)
    assert caught.value.where == path
    assert caught.value.remedy
    assert capfd.readouterr() == ("", "")


def test_a_truncated_png_is_damaged(tmp_path: Path) -> None:
    whole = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        read_image(tmp_path / "a.png")


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 3, 4), np.nan, np.float32)), str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match="not finite"):
        read_image(tmp_path / "a.nrrd")


def test_stem_and_suffix_know_double_suffixes() -> None:
    assert stem_of(Path("x/case.1.nii.gz")) == "case.1"
    assert suffix_of(Path("A.NII.GZ")) == ".nii.gz"


# -- masks -----------------------------------------------------------------------------------------------------------


def test_zero_and_255_is_one_label(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", DISC * 255)).array[0, 0], DISC)


def test_zero_and_one_stay(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", DISC)).array[0, 0], DISC)


def test_small_label_values_stay(tmp_path: Path) -> None:
    labels = DISC.copy()
    labels[:, 15:] *= 3
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", labels)).array[0, 0], labels)


def test_jpeg_masks_are_thresholded_at_half_and_say_so(tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path / "m.jpg", DISC * 255, quality=60))
    assert (mask.array[0, 0] != DISC).mean() < 0.02
    assert "half" in " ".join(mask.notes)


def test_an_empty_jpeg_mask_stays_empty(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (20, 30), dtype=np.uint8)
    assert not read_mask(saved(tmp_path / "m.jpg", noise, quality=80)).array.any()


def test_colour_masks_count_every_colour(tmp_path: Path) -> None:
    colour = np.dstack([DISC * 255, DISC * 0, DISC * 40])
    mask = read_mask(saved(tmp_path / "m.png", colour))
    np.testing.assert_array_equal(mask.array[0, 0], DISC)
    assert "colour" in " ".join(mask.notes)


def test_rgba_masks_are_read(tmp_path: Path) -> None:
    rgba = np.dstack([DISC * 255, DISC * 255, DISC * 255, np.full_like(DISC, 255)])
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", rgba)).array[0, 0], DISC)


def test_palette_indices_are_labels(tmp_path: Path) -> None:
    labels = DISC.copy()
    labels[:, 15:] *= 2
    picture = Image.fromarray(labels, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png").array[0, 0], labels)


def test_evenly_spaced_grey_levels_are_labels(tmp_path: Path) -> None:
    labels = DISC.copy()
    labels[:, 15:] *= 2
    mask = read_mask(saved(tmp_path / "m.png", (labels * 127).astype(np.uint8)))
    np.testing.assert_array_equal(mask.array[0, 0], labels)


def test_sixteen_bit_and_float_masks(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read_mask(saved(tmp_path / "a.png", DISC.astype(np.uint16) * 65535)).array[0, 0], DISC
    )
    sitk.WriteImage(sitk.GetImageFromArray(DISC[None].astype(np.float32)), str(tmp_path / "b.nii.gz"))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.nii.gz").array[0, 0], DISC)
    sitk.WriteImage(sitk.GetImageFromArray(DISC[None].astype(np.float32) * 0.8 + 0.1), str(tmp_path / "c.nii.gz"))
    probabilities = read_mask(tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(probabilities.array[0, 0], DISC)
    assert "0.5" in " ".join(probabilities.notes)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", ["disc", "empty", "full", "one pixel"])
def test_a_written_mask_reads_back_the_same(tmp_path: Path, suffix: str, kind: str) -> None:
    mask = {"disc": DISC, "empty": DISC * 0, "full": DISC * 0 + 1, "one pixel": np.eye(20, 30, dtype=np.uint8) * 0}[
        kind
    ].copy()
    if kind == "one pixel":
        mask[7, 9] = 1
    like = Volume(array=np.zeros((1, 1, 20, 30)), spacing_mm=None, source=Path("x"))
    write_mask(tmp_path / f"m{suffix}", mask[None], like)
    np.testing.assert_array_equal(read_mask(tmp_path / f"m{suffix}").array[0, 0], mask)
    assert [p.name for p in tmp_path.iterdir()] == [f"m{suffix}"]


def test_probabilities_survive_in_sixteen_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 600, dtype=np.float32).reshape(1, 20, 30)
    like = Volume(array=np.zeros((1, 1, 20, 30)), spacing_mm=None, source=Path("x"))
    write_volume(tmp_path / "p.png", values, like)
    np.testing.assert_allclose(read_image(tmp_path / "p.png").array[0] / 65535, values, atol=1e-5)


def test_people_see_colours_or_the_sequence_with_contrast_agent() -> None:
    array = np.arange(3 * 24).reshape(3, 2, 3, 4)
    scan = Volume(array=array, spacing_mm=None, source=Path("x"))
    np.testing.assert_array_equal(scan.shown, array)
    for sequences, channel in ((("t1n", "t1c", "t2f"), 1), (("t1n", "t2w", "t2f"), 0)):
        np.testing.assert_array_equal(replace(scan, sequences=sequences).shown, array[channel : channel + 1])


def test_real_colour_and_jpeg_masks_are_as_a_person_sees_them(real_data: Path) -> None:
    for path in sorted((real_data / "brisc2025" / "masks").glob("*.png"))[:8]:
        share = read_mask(path).array.mean()
        assert 0.001 < share < 0.3, path
    for path in sorted((real_data / "mets2d" / "masks").glob("*.jpg")):
        assert read_mask(path).array.max() == 1
        assert read_mask(path).array.mean() < 0.2
