"""``map`` over cases: here, in several processes, or on a Dask cluster. A failing case is reported, not fatal."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

from metaseg_cli.errors import InputError, Problem, attempt, decoding, first_line, install_hint

Item = TypeVar("Item")
First = TypeVar("First")
Second = TypeVar("Second")
Result = TypeVar("Result")

# The path of a socket has at most 104 bytes (macOS; Linux: 108), of which multiprocessing's own names take 33.
_LONGEST_TEMPORARY_FOLDER = 70
_CLUSTER_SECONDS = 10  # in which a scheduler has to answer
_ADDRESS = re.compile(r"^([a-z]+://)?[^/\s]+:\d+/?$", re.IGNORECASE)


def default_workers() -> int:
    """Return how many processes this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    cluster: str | None = None,
    *,
    file_of: Callable[[Item], Path],
    log_folder: Path | None,
) -> Iterator[tuple[Item, Result | Problem]]:
    """Yield ``(item, function(item))`` in the order of *items*; whatever one item raises becomes its Problem.

    *file_of* names an item's file in its Problem; tracebacks of unexpected errors go to *log_folder*.
    *function* and *items* travel to other processes when *workers* is above 1, or when *cluster* is the address or
    scheduler file of a Dask cluster, and must be picklable. A worker that dies (by lack of memory, say) costs the item
    that it worked on; a cluster gives that to another worker first. Raises InputError when the cluster cannot be
    reached.
    """
    calls = [partial(attempt, partial(function, item), file_of(item), log_folder) for item in items]
    if cluster is not None:
        results = _on_cluster(calls, cluster)
    elif workers <= 1 or len(items) <= 1:
        results = (call() for call in calls)
    else:
        results = _in_processes(calls, workers)
    for item, result in zip(items, results, strict=True):
        yield item, _died(file_of(item)) if result is None else result


def _died(file: Path) -> Problem:
    return Problem(
        file=file,
        reason="the process that read it was killed, perhaps for lack of memory",
        remedy="close other programs, or use --workers 1",
    )


def _in_processes(calls: Sequence[Callable[[], Result]], workers: int) -> Iterator[Result | None]:
    """Yield the results in order, None for a call that killed its worker.

    A dead worker breaks its whole pool. The calls that were running are repeated alone, the others in a new pool.
    """
    done: dict[int, Result | None] = {}
    waiting = list(range(len(calls)))
    following = 0
    while waiting:
        with _pool(min(workers, len(waiting))) as pool:
            futures = {number: pool.submit(calls[number]) for number in waiting}
            try:
                for number in waiting:
                    done[number] = futures[number].result()
                    while following in done:
                        yield done.pop(following)
                        following += 1
            except BrokenProcessPool:
                pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():  # they write whole files or none
                    worker.terminate()
                raise
        for number, future in futures.items():
            if number >= following and number not in done and not future.cancelled() and not future.exception():
                done[number] = future.result()
        waiting = [number for number in waiting if number >= following and number not in done]
        for number in waiting[:workers]:  # calls start in order: one of these killed the worker
            done[number] = _alone(calls[number])
        waiting = waiting[workers:]
        while following in done:
            yield done.pop(following)
            following += 1


def _alone(call: Callable[[], Result]) -> Result | None:
    with _pool(1) as pool:
        try:
            return pool.submit(call).result()
        except BrokenProcessPool:
            return None


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context(_start_method()), initializer=_depend_on_the_parent
    )


def _start_method() -> str:
    """Return how workers start.

    Not by fork: an HDF5 or ITK handle, or a thread of the progress display, must not be copied into a worker. The
    server that forks them instead listens at a socket under the temporary folder, whose path may be too long for one.
    """
    short = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_TEMPORARY_FOLDER
    return "forkserver" if os.name == "posix" and short else "spawn"


def _depend_on_the_parent() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the main process, and end when that has ended.

    A waiting worker would not notice: it holds the writing end of its own queue.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


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


def _on_cluster(calls: Sequence[Callable[[], Result]], cluster: str) -> Iterator[Result | None]:
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError(
            "--cluster requires dask.distributed", remedy=f"install it: {install_hint('cluster')}"
        ) from None
    address = _scheduler_address(cluster)
    try:
        # Without a closed handshake the library would wait for ever, and without a client nothing is left to close.
        _say_hello(address)
        client = Client(address, timeout=f"{_CLUSTER_SECONDS}s", set_as_default=False)
    except Exception as error:
        raise InputError(
            f"no Dask scheduler answers ({first_line(error)})",
            where=cluster,
            remedy="start one with dask scheduler, or leave out --cluster",
        ) from error
    with client:
        # Not pure: a job leaves a file, and the same job may have to run again.
        futures = client.map(_call, calls, pure=False, retries=1)
        try:
            for future in futures:
                try:
                    yield future.result()
                except KilledWorker:
                    yield None
        finally:
            client.cancel(futures)


def _scheduler_address(cluster: str) -> str:
    """Return the address that *cluster* is, or that the scheduler file of this name holds. Raises InputError."""
    path = Path(cluster)
    remedy = "name the file that dask scheduler --scheduler-file writes, or an address as in tcp://10.0.0.1:8786"
    if path.is_file():
        with decoding(path, "not a scheduler file", remedy=remedy):
            address = json.loads(path.read_bytes())["address"]
        if not isinstance(address, str):
            raise InputError("not a scheduler file: its address is not a text", where=path, remedy=remedy)
        return address
    if not _ADDRESS.match(cluster):
        if path.suffix == ".json":
            raise InputError("no such scheduler file", where=cluster, remedy=remedy)
        raise InputError(f"{cluster!r} is neither a scheduler file nor an address with a port", remedy=remedy)
    return cluster


def _say_hello(address: str) -> None:
    """Connect to the scheduler and ask for its identity. Raises what the connection raises, within seconds."""
    import asyncio

    from distributed import rpc
    from distributed.security import Security

    async def ask() -> None:
        secrets = Security().get_connection_args("client")  # of Dask's own configuration, as its client takes them
        async with rpc(address, timeout=_CLUSTER_SECONDS, connection_args=secrets) as scheduler:
            await scheduler.identity()

    async def within_the_time() -> None:
        await asyncio.wait_for(ask(), _CLUSTER_SECONDS)

    asyncio.run(within_the_time())


def _call(call: Callable[[], Result]) -> Result:
    return call()
