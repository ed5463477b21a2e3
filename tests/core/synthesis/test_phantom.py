"""Phantoms are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from metaseg_cli.core.detection import label_lesions
from metaseg_cli.core.synthesis.phantom import PhantomSettings, make_phantom, write_phantom_pictures

SMALL = PhantomSettings(shape=(6, 96, 96))


def test_a_seed_makes_one_patient() -> None:
    a, b, c = make_phantom(3, SMALL), make_phantom(3, SMALL), make_phantom(4, SMALL)
    np.testing.assert_array_equal(a.image, b.image)
    assert a.lesions == b.lesions
    assert not np.array_equal(a.image, c.image)


def test_a_phantom_has_the_lesions_it_lists() -> None:
    settings = PhantomSettings(shape=(40, 96, 96), spacing_mm=(2.0, 2.0, 2.0), lesions=(4, 4), diameter_mm=(10, 16))
    phantom = make_phantom(1, settings)
    assert len(phantom.lesions) == 4
    assert 1 <= label_lesions(phantom.label)[1] <= 4
    volume = phantom.label.sum() * 8.0
    expected = sum(np.pi / 6 * lesion.diameter_mm**3 for lesion in phantom.lesions)
    assert 0.3 * expected < volume < 1.6 * expected


def test_brightness_alone_does_not_find_the_lesions() -> None:
    dice = []
    for seed in range(6):
        phantom = make_phantom(seed, SMALL)
        best = max(
            2 * np.sum(phantom.label[(image := phantom.image[0]) > t]) / (phantom.label.sum() + np.sum(image > t))
            for t in np.linspace(0.6, 1.1, 11)
        )
        dice.append(best)
    assert np.mean(dice) < 0.5


def test_two_sequences_show_oedema_differently() -> None:
    settings = PhantomSettings(
        shape=(6, 96, 96), sequences=("t1c", "t2f"), lesions=(6, 6), diameter_mm=(12, 25), oedema_share=1.0
    )
    assert make_phantom(0, settings).image.shape == (2, 6, 96, 96)


def test_pictures_are_written_in_a_folder_per_patient(tmp_path: Path) -> None:
    write_phantom_pictures(tmp_path, 2, 3, SMALL, seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["patient001", "patient002"]
    assert len(list(tmp_path.glob("*/*_mask.png"))) == 6
    with Image.open(tmp_path / "patient001" / "patient001_02.png") as picture:
        assert (picture.mode, picture.size) == ("L", (96, 96))
