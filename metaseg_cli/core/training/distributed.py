"""Several processes that train one model together, as ``torchrun`` starts them; for one process these are no-ops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metaseg_cli.errors import ConfigError, InputError, MetasegError

# One process may validate a large volume this long while the others wait.
_TIMEOUT = timedelta(minutes=30)
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """Rank and size of this process. Rank 0 writes files and logs; the others only compute."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Return *model* with gradients averaged over the group."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every ``size``-th of *items*, this process's part."""
        return items[self.rank :: self.size]

    def all_gather(self, mine: Sequence[Item]) -> list[Item]:
        """Return the items of all processes, in the order from which ``shard`` took them."""
        if self.size == 1:
            return list(mine)
        parts: list[Sequence[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(mine))
        longest = max(len(part) for part in parts)
        return [part[i] for i in range(longest) for part in parts if i < len(part)]

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """Return the maximum of each value over the group, so that all processes decide alike."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [float(v) for v in tensor.tolist()]

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over the group."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def broadcast(self, value: Item) -> Item:
        """Return the value of rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._device)
        return box[0]

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if dist.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the group that ``torchrun`` made this process a member of, or a group of one. Raises ConfigError."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield ProcessGroup()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.is_available() and device in ("auto", "cuda")
    if gpus and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"{local_rank + 1} processes on this computer, but {torch.cuda.device_count()} GPUs",
            remedy="start torchrun with --nproc-per-node of at most that many",
        )
    if gpus:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if gpus else "gloo", timeout=_TIMEOUT)
    try:
        yield ProcessGroup(rank=int(os.environ["RANK"]), size=size, local_rank=local_rank)
    except MetasegError as error:
        error.reported = not _first_to_fail()
        raise
    except RuntimeError as error:
        # Collectives fail when another process is gone; as a rule that one has reported why.
        first = _first_to_fail()
        if first and "onnection" not in str(error) and not isinstance(error, dist.DistBackendError):
            raise
        gone = InputError(
            "another process of this training has ended",
            remedy="see what it said, or whether the system killed it; then resume with metaseg train --resume RUN",
        )
        gone.reported = not first
        raise gone from error
    finally:
        dist.destroy_process_group()


def _first_to_fail() -> bool:
    """Return whether no other process of the group has failed before; False when the store no longer answers."""
    with contextlib.suppress(RuntimeError):
        store = dist.distributed_c10d._get_default_store()
        return bool(store.add("metaseg/failed", 1) == 1)
    return False
