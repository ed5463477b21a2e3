"""The networks' names; free of torch, so that the command line can check them at once."""

from __future__ import annotations

import difflib

from metaseg_cli.errors import ConfigError

DEFAULT_WIDTHS = (32, 64, 128, 256, 512)
MODEL_NAMES = ("attention-unet", "nested-unet")
_ALIASES = {
    "attention-unet": "attention-unet",
    "attentionunet": "attention-unet",
    "att-unet": "attention-unet",
    "attunet": "attention-unet",
    "nested-unet": "nested-unet",
    "nestedunet": "nested-unet",
    "unet++": "nested-unet",
    "u-net++": "nested-unet",
    "unetpp": "nested-unet",
    "unet-plus-plus": "nested-unet",
    "unetplusplus": "nested-unet",
    "attention-u-net": "attention-unet",
    "nested-u-net": "nested-unet",
}


def is_model_name(text: str) -> bool:
    """Whether *text* is one of the spellings of a network's name."""
    return _normalised(text) in _ALIASES


def model_name(text: str) -> str:
    """The name with a hyphen for any accepted spelling (``nested_unet``, ``UNet++``, …). Raises ConfigError."""
    try:
        return _ALIASES[_normalised(text)]
    except KeyError:
        near = difflib.get_close_matches(_normalised(text), MODEL_NAMES, n=1, cutoff=0.0)
        raise ConfigError(
            f"unknown model {text!r}", remedy=f"did you mean {near[0]}? There are {' and '.join(MODEL_NAMES)}"
        ) from None


def _normalised(text: str) -> str:
    return text.strip().lower().replace("_", "-").replace(" ", "-")
