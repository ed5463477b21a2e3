"""One ``map`` over cases: here, in several processes, or on a Dask cluster; a failing case is reported, not fatal."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from metaseg_cli.errors import InputError, MetasegError, first_line

Item = TypeVar("Item")
First = TypeVar("First")
Second = TypeVar("Second")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Why one item gave no result."""

    reason: str


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, cluster: str | None = None
) -> Iterator[tuple[Item, Result | Failure]]:
    """Yield ``(item, function(item))`` in the order of *items*; a MetasegError of one item becomes its Failure.

    *function* and *items* travel to other processes when *workers* is above 1, or when *cluster* is the address or
    scheduler file of a Dask cluster, and must be picklable. A worker that is killed (by lack of memory, say) fails the
    items it had, with that reason; a cluster gives them to another worker first. Raises InputError when the cluster
    cannot be reached.
    """
    if cluster is not None:
        yield from _on_cluster(function, items, cluster)
        return
    if workers <= 1 or len(items) <= 1:
        for item in items:
            yield item, _guarded(function, item)
        return
    # Not fork: an HDF5 or ITK handle, or a thread of the progress display, must not be copied into a worker.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context) as pool:
        futures = [pool.submit(_guarded, function, item) for item in items]
        try:
            for item, future in zip(items, futures, strict=True):
                try:
                    yield item, future.result()
                except BrokenProcessPool:
                    yield item, Failure("the worker process was killed, perhaps for lack of memory; use --workers 1")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def map_stages(
    stages: tuple[Callable[[Item], First], Callable[[First], Second], Callable[[Second], Result]],
    items: Sequence[Item],
    *,
    overlap: bool = True,
) -> Iterator[tuple[Item, Result]]:
    """Yield each of *items* with what the three *stages* make of it, in order.

    With *overlap*, the next item's first stage and the last one's third run in threads beside the second, so that up to
    three items are in memory.
    """
    before, middle, after = stages
    if not overlap or len(items) < 2:
        for item in items:
            yield item, after(middle(before(item)))
        return
    with ThreadPoolExecutor(1, "before") as ahead, ThreadPoolExecutor(1, "after") as behind:
        coming = ahead.submit(before, items[0])
        going: tuple[Item, Future[Result]] | None = None
        for item, following in itertools.zip_longest(items, items[1:]):
            ready = coming.result()
            if following is not None:
                coming = ahead.submit(before, following)
            done = middle(ready)
            if going is not None:
                yield going[0], going[1].result()
            going = (item, behind.submit(after, done))
        assert going is not None
        yield going[0], going[1].result()


def _on_cluster(
    function: Callable[[Item], Result], items: Sequence[Item], cluster: str
) -> Iterator[tuple[Item, Result | Failure]]:
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError(
            "--cluster wants dask.distributed", remedy="install it: pip install 'metaseg-cli[cluster]'"
        ) from None
    try:
        where = {"scheduler_file": cluster} if Path(cluster).is_file() else {"address": cluster}
        client = Client(**where, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Dask scheduler answers ({first_line(error)})",
            where=cluster,
            remedy="start one with dask scheduler, or leave out --cluster",
        ) from error
    with client:
        # Not pure: what a job leaves is a file, and the same job may have to run again.
        futures = client.map(partial(_guarded, function), items, pure=False, retries=1)
        try:
            for item, future in zip(items, futures, strict=True):
                try:
                    yield item, future.result()
                except KilledWorker:
                    yield item, Failure("several workers died of it, perhaps for lack of memory")
        finally:
            client.cancel(futures)


def _guarded(function: Callable[[Item], Result], item: Item) -> Result | Failure:
    try:
        return function(item)
    except MetasegError as error:
        return Failure(str(error))
