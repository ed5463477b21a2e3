"""Which patches a batch holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.inference.sliding_window import with_neighbours
from metaseg_cli.core.sampling import PatchCentre, PatchSampler, ReadAhead


def sampler(prepared: Path, patch: tuple[int, int, int] = (1, 32, 32), share: float = 0.5) -> PatchSampler:
    folder = open_prepared(prepared)
    return PatchSampler(folder, folder.in_fold(0)[0], patch, foreground_fraction=share, seed=0)


def test_batches_hold_patches_and_the_promised_share_of_lesions(prepared: Path) -> None:
    draw = sampler(prepared, share=1.0)
    batches = [draw.batch(i, 8) for i in range(10)]
    assert batches[0].image.shape == (8, 1, 32, 32)
    assert batches[0].target.shape == (8, 1, 32, 32)
    share = torch.cat([b.target.flatten(1).any(1) for b in batches]).float().mean()
    assert share > 0.9


def test_patches_larger_than_the_image_are_padded(prepared: Path) -> None:
    batch = sampler(prepared, (1, 96, 80)).batch(0, 2)
    assert batch.image.shape == (2, 1, 96, 80)
    assert batch.target[..., :16, :].sum() == 0  # the picture has 64 rows: padding lies on both sides


def test_a_batch_follows_from_its_number_alone(prepared: Path) -> None:
    draw = sampler(prepared)
    expected = draw.batch(7, 6)
    again = sampler(prepared)
    again.batch(0, 6)
    assert torch.equal(again.batch(7, 6).image, expected.image)
    parts = [again.batch(7, 6, slice(rank, None, 2)) for rank in (0, 1)]
    assert torch.equal(parts[1].image, expected.image[1::2])
    assert torch.equal(parts[0].target, expected.target[::2])


def test_batches_read_ahead_are_those_asked_for(prepared: Path) -> None:
    draw = sampler(prepared)
    ahead = ReadAhead(draw, 3, 2)
    try:
        assert torch.equal(ahead.take().image, draw.batch(3, 2).image)
        ahead.restart(9)
        assert torch.equal(ahead.take().image, draw.batch(9, 2).image)
    finally:
        ahead.close()


def test_hard_negatives_are_sampled(prepared: Path) -> None:
    folder = open_prepared(prepared)
    cases = folder.in_fold(0)[0]
    draw = PatchSampler(folder, cases, (1, 16, 16), seed=0, foreground_fraction=0.0, hard_negative_fraction=1.0)
    draw.hard_negatives = (PatchCentre(1, (0, 30, 30)),)
    assert set(draw.batch(0, 8).cases) == {cases[1].case}


def test_adjacent_slices_are_channels_side_by_side(prepared: Path) -> None:
    folder = open_prepared(prepared)
    draw = PatchSampler(folder, folder.in_fold(0)[0], (1, 16, 16), seed=0, context=1)
    plain = PatchSampler(folder, folder.in_fold(0)[0], (1, 16, 16), seed=0)
    batch = draw.batch(0, 4)
    assert batch.image.shape == (4, 3, 16, 16)
    assert torch.equal(batch.image[:, 1:2], plain.batch(0, 4).image)
    image = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 2)
    stacked = with_neighbours(image, 1)
    assert stacked.shape == (6, 3, 2, 2)
    assert torch.equal(stacked[3:, 1], image[1])  # the second sequence's slices before, at and after slice 1
    assert torch.equal(stacked[0, 0], image[0, 0])  # beyond the end the last slice is repeated


def test_small_lesions_are_drawn_as_often_as_large_ones() -> None:
    from metaseg_cli.core.sampling import even_over_sizes

    weights = even_over_sizes(np.array([4.0, 5000, 5000, 5000, 5000]))
    assert weights[0] == pytest.approx(0.5)
    assert weights.sum() == pytest.approx(1)
