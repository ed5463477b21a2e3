"""What is done to a batch before the network sees it: augmentation, and the channels of modality availability."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from metaseg_cli.config import TrainConfig
from metaseg_cli.core import augmentation
from metaseg_cli.core.models.availability import with_availability

_STREAM = 2  # of random numbers: the sampler draws from those of the seed and the number of the batch


class BatchAugmentation:
    """Augments batches of one run; what happens follows from the seed, the step and the *rank* of the process."""

    def __init__(self, config: TrainConfig, *, dims: int, availability: bool, rank: int) -> None:
        self.settings = augmentation.Augmentation(
            # Pictures come in any orientation; volumes are mirrored only where the head is symmetric.
            flip_axes=(-1, -2) if dims == 2 else (-1,),
            drop_sequence=config.drop_sequence,
            paste=config.paste,
        )
        self.active, self.seed, self.availability, self.rank = config.augment, config.seed, availability, rank

    def __call__(self, image: Tensor, target: Tensor, available: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return *image* ``(B, C·(2k + 1), *spatial)`` and *target* ``(B, R, *spatial)`` as the network gets them.

        *available* ``(B, C)`` says which sequences a case has; with ``availability`` they become C more channels.
        """
        if self.active:
            rng = np.random.default_rng([self.seed, _STREAM, step, self.rank])
            shape = (len(image), available.shape[1], *image.shape[2:])
            parameters = augmentation.draw(self.settings, shape, rng)
            image, target = augmentation.apply(image, target, parameters)
            if self.availability:
                image, available = augmentation.drop_sequences(image, available, parameters)
            else:
                image = augmentation.repeat_channels(image, parameters)
        return (with_availability(image, available) if self.availability else image), target
