"""Choose the device, and the precision and memory format that are fast on it."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from metaseg_cli.core.choices import NORMS
from metaseg_cli.core.memory import available_memory
from metaseg_cli.errors import InputError, first_line


def choose_device(name: str) -> torch.device:
    """Return the device that ``--device`` names; auto takes a GPU where there is one. Raises InputError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {name!r} cannot be used ({first_line(error)})", remedy="take --device auto"
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision that suits the device: bf16 where the hardware has it; emulation is slow."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"
    return "fp32"


Network = TypeVar("Network", bound=nn.Module)


def memory_format(dims: int, norm: str) -> torch.memory_format:
    """Return the faster memory format: measured, batch norm prefers channels last, instance norm does not."""
    if not NORMS[norm].channels_last:
        return torch.contiguous_format
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def to_memory_format(network: Network, dims: int, norm: str) -> Network:
    """Put the weights of *network* into ``memory_format``."""
    if NORMS[norm].channels_last:
        network.to(memory_format=memory_format(dims, norm))  # type: ignore[call-overload]
    return network


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on *device*; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() if device.type == "cpu" else None
