"""Build the shards of a prepared folder: new and changed cases by many processes, the others from an earlier run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.cache.records import CacheSettings, CaseRecord, WrittenCase
from metaseg_cli.core.cache.writing import ShardJob, case_key, reusable_cases, shard_jobs, write_shard
from metaseg_cli.core.counts import counted
from metaseg_cli.core.datasets import FoundCases
from metaseg_cli.core.executor import default_workers, map_cases
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import Problem


@dataclass(frozen=True, kw_only=True)
class BuiltCases:
    """All cases in the shards, sorted by patient, with problems and notes; *reused* counts those of an earlier run."""

    records: list[CaseRecord]
    problems: list[Problem]
    notes: list[str]
    reused: int


def build_shards(
    found: FoundCases, settings: CacheSettings, config: PrepareConfig, progress: Progress, log_folder: Path | None
) -> BuiltCases:
    """Write what is new or changed; take the rest from the shards that exist.

    Tracebacks of unexpected errors go to *log_folder*.
    """
    reusable = reusable_cases(config.out)
    keys = {source.case: case_key(source, settings) for source in found.cases}
    done = [each for source in found.cases for each in reusable.get(keys[source.case], ())]
    reused = len(done)
    fresh = [source for source in found.cases if keys[source.case] not in reusable]
    if reused:
        progress.say(f"unchanged, and taken from {config.out}: {counted(reused, 'case')}")
    progress.start("preparing", len(fresh), unit="case")
    written, problems = _write(shard_jobs(config.out, fresh, settings, len(found.cases)), config, progress, log_folder)
    done += written
    return BuiltCases(
        records=sorted((each.record for each in done if each.record), key=lambda r: (r.patient, r.case)),
        problems=problems + [p for each in done for p in each.problems],
        notes=[note for each in done for note in each.notes],
        reused=reused,
    )


def _write(
    jobs: Sequence[ShardJob], config: PrepareConfig, progress: Progress, log_folder: Path | None
) -> tuple[list[WrittenCase], list[Problem]]:
    """Write the shards of *jobs*. A case that kills its worker costs the others of its shard nothing."""
    written: list[WrittenCase] = []
    problems: list[Problem] = []
    one_by_one: list[ShardJob] = []
    workers = config.workers or default_workers()
    for job, result in _map(jobs, workers, config, log_folder):
        if isinstance(result, Problem) and len(job.sources) > 1:
            one_by_one += [dataclasses.replace(job, sources=(source,)) for source in job.sources]
            continue
        _collect(result, written, problems)
        progress.advance(len(job.sources))
    for _, result in _map(one_by_one, max(2, workers), config, log_folder):
        _collect(result, written, problems)
        progress.advance(1)
    return written, problems


def _collect(result: list[WrittenCase] | Problem, written: list[WrittenCase], problems: list[Problem]) -> None:
    if isinstance(result, Problem):
        problems.append(result)
    else:
        written += result


def _map(
    jobs: Sequence[ShardJob], workers: int, config: PrepareConfig, log_folder: Path | None
) -> Iterator[tuple[ShardJob, list[WrittenCase] | Problem]]:
    return map_cases(
        write_shard, jobs, workers, config.cluster, file_of=lambda job: job.sources[0].first_file, log_folder=log_folder
    )
