"""Both networks' training step and inference next to MONAI's at equal widths, as ratios measured in one run.

    python tests/benchmarks/networks.py [--rounds 5] [--size 256] [--batch 4] [--only nested] [--norm batch]

Every network runs in both memory formats; the better one counts. Rounds are interleaved, so that a machine that
slows down slows all of them; medians are printed. MONAI comes with the ``test`` extra.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaseg_cli.core.models import build_model
from metaseg_cli.core.models.blocks import fold_batch_norms

WIDTHS = (32, 64, 128, 256, 512)


def ours(name: str, norm: str) -> nn.Module:
    return build_model(name, in_channels=1, out_channels=1, widths=WIDTHS, norm=norm, deep_supervision=False)


def monai_attention() -> nn.Module:
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(spatial_dims=2, in_channels=1, out_channels=1, channels=WIDTHS, strides=(2, 2, 2, 2))


def monai_nested() -> nn.Module:
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(spatial_dims=2, in_channels=1, out_channels=1, features=(*WIDTHS, WIDTHS[0]))


def training_step(model: nn.Module, x: Tensor, target: Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
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
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", default="fp32,bf16")
    arguments = parser.parse_args()
    x = torch.randn(arguments.batch, 1, arguments.size, arguments.size)
    target = (torch.rand_like(x) > 0.99).float()
    peers = {"attention-unet": monai_attention, "nested-unet": monai_nested}
    print(
        f"{arguments.batch} × 1 × {arguments.size}², widths {WIDTHS}, {torch.get_num_threads()} threads; ms per image"
    )
    for name, peer in peers.items():
        if arguments.only not in name:
            continue
        for precision in arguments.precision.split(","):
            for kind in ("inference", "training step"):
                times: dict[tuple[str, str], list[float]] = {}
                steps: dict[tuple[str, str], Callable[[], None]] = {}
                for layout in (torch.contiguous_format, torch.channels_last):
                    for who, model in (("metaseg", ours(name, arguments.norm)), ("monai", peer())):
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
                best = {who: min((m, k[1]) for k, m in medians.items() if k[0] == who) for who in ("metaseg", "monai")}
                print(
                    f"{name:15} {precision} {kind:13}  metaseg {best['metaseg'][0]:7.1f} ({best['metaseg'][1]})"
                    f"  monai {best['monai'][0]:7.1f} ({best['monai'][1]})"
                    f"  monai/metaseg {best['monai'][0] / best['metaseg'][0]:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
