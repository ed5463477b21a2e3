"""Build a network by its name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from metaseg_cli.core.choices import ACTIVATIONS, DEFAULT_WIDTHS, NETWORKS, network_name
from metaseg_cli.core.models.blocks import ConvConfig, full_strides, initialise, set_foreground_prior
from metaseg_cli.core.models.network import Network
from metaseg_cli.errors import ConfigError


def build_model(
    name: str,
    *,
    in_channels: int,
    out_channels: int,
    dims: int = 2,
    widths: Sequence[int] = DEFAULT_WIDTHS,
    norm: str = "batch",
    activation: str = "leaky-relu",
    strides: Sequence[int | Sequence[int]] | None = None,
    deep_supervision: bool = True,
    foreground_prior: float = 0.01,
) -> Network:
    """Build a network with fresh weights; on the device "meta", without any.

    *widths* are the channels per level, finest first; *strides* the poolings between them (2 on every axis by
    default). ``forward`` takes ``(B, in_channels, Y, X)`` or, with *dims* 3, ``(B, in_channels, Z, Y, X)`` of any
    size and returns logits of that size: one tensor ``(B, out_channels, …)``, or in train mode with
    *deep_supervision* a list of them, finest head last. *foreground_prior* is the probability that the untrained
    network answers everywhere.

    Raises ConfigError for a name, number or combination that does not exist.
    """
    if in_channels < 1 or out_channels < 1:
        raise ConfigError(f"a network needs at least one channel in and out, got {in_channels} and {out_channels}")
    if len(widths) < 2 or min(widths) < 1:
        raise ConfigError(f"widths must be at least two positive numbers, got {tuple(widths)}")
    if not 0 < foreground_prior < 1:
        raise ConfigError(f"foreground_prior is a probability between 0 and 1, got {foreground_prior}")
    config = ConvConfig(dims=dims, norm=norm, activation=activation)
    all_strides = full_strides(dims, len(widths), strides)
    model = _network_class(network_name(name))(
        config, in_channels, out_channels, tuple(widths), all_strides, deep_supervision
    )
    # On "meta" there is nothing to initialise, and trying would load torch's compiler: two seconds.
    if not next(model.parameters()).is_meta:
        initialise(model, slope=ACTIVATIONS[activation])
        set_foreground_prior(model.heads, foreground_prior)
    return model


def _network_class(name: str) -> type[Network]:
    """The class that a row of ``NETWORKS`` names. Raises TypeError when it is not a ``Network``."""
    module, _, class_name = NETWORKS[name].implementation.partition(":")
    found = getattr(importlib.import_module(module), class_name)
    if not issubclass(found, Network):
        raise TypeError(f"{NETWORKS[name].implementation} does not implement metaseg_cli.core.models.network.Network")
    return found
