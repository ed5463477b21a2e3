"""Which normalisation, activation and loss learns best per CPU minute: the measurement behind the defaults.

    metaseg prepare FOLDER --out prepared
    python tests/benchmarks/norms.py prepared [--minutes 4] [--models attention-unet] [--losses focal,dice-focal]

Every combination trains for the same CPU time (of this process, per thread, so that what else runs on the machine
counts little) and is scored on the validation fold.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from metaseg_cli.commands.train import train
from metaseg_cli.config import TrainConfig
from metaseg_cli.core.progress import Silent


def cpu_clock() -> float:
    return time.process_time() / torch.get_num_threads()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--models", default="attention-unet,nested-unet")
    parser.add_argument("--norms", default="batch,instance,group,none")
    parser.add_argument("--activations", default="leaky-relu,relu")
    parser.add_argument("--losses", default="dice-focal")
    parser.add_argument("--patch", type=int, default=160)
    parser.add_argument("--widths", default="32,64,128,256,512")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for model in arguments.models.split(","):
                for norm in arguments.norms.split(","):
                    for activation in arguments.activations.split(","):
                        for loss in arguments.losses.split(","):
                            result = train(
                                TrainConfig(
                                    data=arguments.prepared,
                                    out=Path(folder),
                                    model=model,
                                    norm=norm,
                                    activation=activation,
                                    loss=loss,
                                    patch=(arguments.patch,),
                                    widths=tuple(int(w) for w in arguments.widths.split(",")),
                                    max_minutes=arguments.minutes,
                                    seed=seed,
                                ),
                                Silent(),
                                clock=cpu_clock,
                            )
                            print(
                                f"{model:15} {norm:9} {activation:11} {loss:13} seed {seed}"
                                f"  Dice {result.scores['dice']:.3f}  lesion F1 {result.scores['lesion_f1']:.3f}"
                                f"  steps {result.steps:4d}  {result.images_per_second:.1f} images/s",
                                flush=True,
                            )


if __name__ == "__main__":
    main()
