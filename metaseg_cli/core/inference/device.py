"""Which device, and which number format runs fast on it."""

from __future__ import annotations

import torch

from metaseg_cli.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names; auto takes a GPU where there is one. Raises InputError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {name!r} cannot be used ({str(error).splitlines()[0]})", remedy="take --device auto"
        ) from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """bf16 halves the time where the processor has it; elsewhere it is emulated and slow."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"
    return "fp32"
