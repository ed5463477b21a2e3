"""Training step and inference of both networks next to MONAI's and nnU-Net's, as ratios measured in one run.

    python tests/benchmarks/networks.py [--dims 2] [--widths 32,64,128,256,320] [--rounds 5] [--only nested]
    python tests/benchmarks/networks.py --dims 3 --size 64 --batch 2 --widths 32,64,128,256,320

Every network runs in both memory formats; the better one counts. Rounds are interleaved, so that a machine that
slows down slows all of them; medians are printed. All get the same fused AdamW and large pages. MONAI comes with the
``test`` extra; nnU-Net's PlainConvUNet, left out otherwise, with
``pip install --no-deps dynamic-network-architectures``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the metaseg command sets it

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg_cli.core.choices import NETWORKS
from metaseg_cli.core.models import build_model
from metaseg_cli.core.models.blocks import fold_batch_norms

Widths = tuple[int, ...]


def ours(name: str, dims: int, widths: Widths, norm: str) -> nn.Module:
    return build_model(name, in_channels=1, out_channels=1, dims=dims, widths=widths, norm=norm, deep_supervision=False)


def monai_attention(dims: int, widths: Widths) -> nn.Module:
    from monai.networks.nets import AttentionUnet

    strides = (2,) * (len(widths) - 1)
    return AttentionUnet(spatial_dims=dims, in_channels=1, out_channels=1, channels=widths, strides=strides)


def monai_nested(dims: int, widths: Widths) -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(spatial_dims=dims, in_channels=1, out_channels=1, features=(*widths, widths[0]))


def nnunet(dims: int, widths: Widths) -> nn.Module:
    """As nnU-Net's planner builds it; one output, so that all have the same loss."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    levels = len(widths)
    return PlainConvUNet(
        input_channels=1,
        n_stages=levels,
        features_per_stage=widths,
        conv_op=convolution,
        kernel_sizes=3,
        strides=[1] + [2] * (levels - 1),
        n_conv_per_stage=2,
        num_classes=1,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def training_step(model: nn.Module, x: Tensor, target: Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = model(x)
        logits = outputs if isinstance(outputs, list) else [outputs]
        loss = sum(F.binary_cross_entropy_with_logits(each.float(), target) for each in logits)
        loss.backward()
        optimizer.step()

    return step


def inference(model: nn.Module, x: Tensor, bf16: bool) -> Callable[[], None]:
    model.eval()

    def step() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(x)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dims", type=int, choices=(2, 3), default=2)
    parser.add_argument("--widths", default="32,64,128,256,512")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--kinds", default="inference,training step")
    arguments = parser.parse_args()
    dims, widths = arguments.dims, tuple(int(w) for w in arguments.widths.split(","))
    x = torch.randn(arguments.batch, 1, *(arguments.size,) * dims)
    target = (torch.rand_like(x) > 0.99).float()
    peers: dict[str, dict[str, Callable[[int, Widths], nn.Module]]] = {name: {} for name in NETWORKS}
    peers["attention-unet"]["monai"] = monai_attention
    peers["nested-unet"]["monai"] = monai_nested
    try:
        nnunet(dims, widths)
        peers["attention-unet"]["nnunet"] = nnunet
    except ImportError:
        print("dynamic-network-architectures is not installed: without nnU-Net")
    shape = f"{arguments.batch} × 1 × {arguments.size}^{dims}"
    print(f"{shape}, widths {widths}, {torch.get_num_threads()} threads; ms per image")
    for name, others in peers.items():
        if arguments.only not in name:
            continue
        for precision in arguments.precision.split(","):
            for kind in arguments.kinds.split(","):
                times: dict[tuple[str, str], list[float]] = {}
                steps: dict[tuple[str, str], Callable[[], None]] = {}
                for layout in (torch.contiguous_format, torch.channels_last if dims == 2 else torch.channels_last_3d):
                    built = {who: peer(dims, widths) for who, peer in others.items()}
                    for who, model in {"metaseg": ours(name, dims, widths, arguments.norm), **built}.items():
                        model.to(memory_format=layout)
                        image = x.to(memory_format=layout)
                        bf16 = precision == "bf16"
                        if kind == "training step":
                            step = training_step(model, image, target, bf16)
                        else:
                            # metaseg predict folds the norms into the convolutions
                            step = inference(fold_batch_norms(model.eval()) if who == "metaseg" else model, image, bf16)
                        steps[who, str(layout).removeprefix("torch.")] = step
                for step in steps.values():
                    step()
                for _ in range(arguments.rounds):
                    for key, step in steps.items():
                        begin = time.perf_counter()
                        step()
                        times.setdefault(key, []).append((time.perf_counter() - begin) * 1000 / arguments.batch)
                medians = {key: statistics.median(values) for key, values in times.items()}
                best = {who: min((m, k[1]) for k, m in medians.items() if k[0] == who) for who in ("metaseg", *others)}
                mine = best["metaseg"][0]
                line = f"{name:15} {precision} {kind:13}  metaseg {mine:7.1f} ({best['metaseg'][1]})"
                for who in others:
                    line += f"  {who} {best[who][0]:7.1f} ({best[who][1]}), metaseg/{who} {mine / best[who][0]:.2f}"
                print(line, flush=True)


if __name__ == "__main__":
    main()
