"""The prepared folder: cases normalised once, kept in HDF5, read a slice or a patch at a time.

prepared/dataset.h5     index: ``cases/<id>`` are external links into the shards
prepared/shards/*.h5    the cases; each shard is written by one process and published by rename
prepared/dataset.json   what the folder holds: regions, sequences, fingerprint, folds, settings
"""

from metaseg_cli.core.cache.checks import dataset_warnings
from metaseg_cli.core.cache.reading import Prepared, open_prepared, region_masks
from metaseg_cli.core.cache.records import SCHEMA, CacheSettings, CaseRecord, WrittenCase
from metaseg_cli.core.cache.writing import (
    ShardJob,
    case_key,
    commit_index,
    exclusive_cache_writer,
    reusable_cases,
    shard_jobs,
    write_shard,
)

__all__ = [
    "SCHEMA",
    "CacheSettings",
    "CaseRecord",
    "Prepared",
    "ShardJob",
    "WrittenCase",
    "case_key",
    "commit_index",
    "dataset_warnings",
    "exclusive_cache_writer",
    "open_prepared",
    "region_masks",
    "reusable_cases",
    "shard_jobs",
    "write_shard",
]
