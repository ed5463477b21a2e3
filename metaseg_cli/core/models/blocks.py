"""Building blocks of the networks, each for 2D and 3D."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metaseg_cli.core.choices import ACTIVATIONS, NORMS
from metaseg_cli.core.models.network import Stride
from metaseg_cli.errors import ConfigError

_NORM_GROUPS = 8  # chosen, not measured: 4 … 64 channels each with the default widths
_CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """What every block of one network has in common."""

    dims: int
    norm: str = "batch"
    activation: str = "leaky-relu"

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ConfigError(f"dims must be 2 or 3, got {self.dims}")
        if self.norm not in NORMS:
            raise ConfigError(f"unknown norm {self.norm!r}", remedy=f"take one of {', '.join(NORMS)}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {self.activation!r}", remedy=f"take one of {', '.join(ACTIVATIONS)}")


def conv(config: ConvConfig, inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True) -> nn.Module:
    """Build a convolution that keeps the size."""
    return _CONV[config.dims](inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def strided_conv(config: ConvConfig, inputs: int, outputs: int, stride: Stride) -> nn.Module:
    """Build a convolution without overlap or bias: each output sees one cell of *stride* voxels."""
    return _CONV[config.dims](inputs, outputs, stride, stride=stride, bias=False)


class UpConv2d(nn.ConvTranspose2d):
    """A transposed convolution without overlap; in training in channels last computed as a matrix product.

    The backward pass of the general transposed convolution takes about twice as long on a processor.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, C, Y, X)`` → ``(B, outputs, Y·stride, X·stride)``."""
        if self.training and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            return _matrix_product_up(x, self.weight, self.bias)
        return super().forward(x)


class UpConv3d(nn.ConvTranspose3d):
    """``UpConv2d`` in 3D."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, C, Z, Y, X)`` → ``(B, outputs, Z·stride, Y·stride, X·stride)``."""
        if self.training and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d):
            return _matrix_product_up(x, self.weight, self.bias)
        return super().forward(x)


def _matrix_product_up(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Turn each voxel of *x* ``(B, C, …)`` into a cell of *stride* voxels; *weight* is ``(C, outputs, *stride)``."""
    outputs, *stride = weight.shape[1:]
    batch, _, *size = x.shape
    dims = len(size)
    cells = weight.permute(*range(2, 2 + dims), 1, 0).reshape(-1, weight.shape[0])  # (stride…, outputs) × C
    repeated = None if bias is None else bias.repeat(math.prod(stride))
    y = F.linear(x.movedim(1, -1), cells, repeated).view(batch, *size, *stride, outputs)
    # (b, z, y, x, sz, sy, sx, f) → (b, z, sz, y, sy, x, sx, f)
    order = [0, *(axis for d in range(dims) for axis in (1 + d, 1 + dims + d)), 1 + 2 * dims]
    full = [n * s for n, s in zip(size, stride, strict=True)]
    return y.permute(order).reshape(batch, *full, outputs).movedim(-1, 1)


_UP: dict[int, type[nn.Module]] = {2: UpConv2d, 3: UpConv3d}


def up_conv(config: ConvConfig, inputs: int, outputs: int, stride: Stride) -> nn.Module:
    """Build a transposed convolution without overlap: it restores the grid before a pooling by *stride*."""
    return _UP[config.dims](inputs, outputs, stride, stride=stride)


def pool(config: ConvConfig, stride: Stride) -> nn.Module:
    """Build max pooling by *stride* per axis."""
    return _POOL[config.dims](stride, stride)


def norm(config: ConvConfig, channels: int) -> nn.Module:
    """Build the normalisation layer that *config* names."""
    if config.norm == "batch":
        return _BATCH[config.dims](channels)
    if config.norm == "instance":
        return _INSTANCE[config.dims](channels, affine=True)
    if config.norm == "group":
        return nn.GroupNorm(math.gcd(_NORM_GROUPS, channels), channels)
    return nn.Identity()


def activation(config: ConvConfig) -> nn.Module:
    """Build the activation that *config* names; in place, as what it overwrites is not needed again."""
    slope = ACTIVATIONS[config.activation]
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


class ConvBlock(nn.Sequential):
    """3×3(×3) convolutions, by default two, each followed by norm and activation: H in both papers.

    They have a bias only where no norm follows.
    """

    def __init__(self, config: ConvConfig, inputs: int, outputs: int, convolutions: int = 2) -> None:
        bias = config.norm == "none"
        layers: list[nn.Module] = []
        for i in range(convolutions):
            first = inputs if i == 0 else outputs
            layers += [conv(config, first, outputs, bias=bias), norm(config, outputs), activation(config)]
        super().__init__(*layers)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the weights of the convolution before it; for prediction only.

    The running statistics are constants then, and a pass over every map is saved.
    """
    for block in model.modules():
        if not isinstance(block, nn.Sequential):
            continue
        for i, (layer, following) in enumerate(itertools.pairwise(block)):
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)) and isinstance(following, (nn.BatchNorm2d, nn.BatchNorm3d)):
                block[i] = fuse_conv_bn_eval(layer, following)
                block[i + 1] = nn.Identity()
    return model


def full_strides(dims: int, levels: int, strides: Sequence[int | Sequence[int]] | None) -> tuple[Stride, ...]:
    """Return one stride per axis for each of the *levels* − 1 poolings; 2 everywhere by default.

    Raises ConfigError when the number of strides or of axes does not fit.
    """
    given: Sequence[int | Sequence[int]] = strides if strides is not None else [2] * (levels - 1)
    full = tuple((s,) * dims if isinstance(s, int) else tuple(s) for s in given)
    if len(full) != levels - 1 or any(len(s) != dims for s in full):
        raise ConfigError(f"{levels} widths in {dims}D need {levels - 1} strides of {dims} numbers each, got {full}")
    return full


def total_stride(strides: Sequence[Stride]) -> Stride:
    """Return by how much the coarsest grid is coarser than the input, per axis."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def pad_to_multiple(x: Tensor, multiple: Stride) -> Tensor:
    """Pad the far ends of the spatial axes of ``(B, C, …)`` by replication, so that every pooling divides evenly."""
    missing = [-size % m for size, m in zip(x.shape[2:], multiple, strict=True)]
    if not any(missing):
        return x
    pads = [side for amount in reversed(missing) for side in (0, amount)]
    return F.pad(x, pads, mode="replicate")


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop the far ends of the spatial axes of ``(B, C, …)`` to *size*: the inverse of ``pad_to_multiple``."""
    for axis, length in enumerate(size, start=2):
        if x.shape[axis] != length:
            x = x.narrow(axis, 0, length)
    return x


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate ``(B, C, …)`` linearly to *size*."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear" if x.dim() == 4 else "trilinear", align_corners=False)


def initialise(model: nn.Module, slope: float) -> None:
    """Initialise every convolution as He et al. 2015 (fan in, the activation's slope), every bias with zero."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=slope)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_foreground_prior(heads: nn.ModuleList, prior: float) -> None:
    """Let every head start with the probability *prior* everywhere (Lin et al. 2017, §4.1): lesion voxels are rare."""
    for head in heads:
        assert isinstance(head.weight, Tensor)
        assert isinstance(head.bias, Tensor)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
