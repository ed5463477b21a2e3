"""The prepared folder: cases normalised once, kept in HDF5, read a slice or a patch at a time.

prepared/dataset.h5     index: ``cases/<id>`` are external links into the shards
prepared/shards/*.h5    the cases; each shard is written by one process and appears by rename
prepared/dataset.json   what the folder holds: regions, sequences, fingerprint, folds, settings
"""

from metaseg_cli.core.cache.building import BuiltCases, build_shards
from metaseg_cli.core.cache.case_reading import OriginalScan
from metaseg_cli.core.cache.checks import dataset_warnings
from metaseg_cli.core.cache.fold_assignment import FoldAssignment, assign_folds
from metaseg_cli.core.cache.origin import CaseOrigin
from metaseg_cli.core.cache.reading import Prepared, open_prepared
from metaseg_cli.core.cache.records import LISTING_FILE, SCHEMA, CacheSettings, CaseRecord, PrepareResult, WrittenCase
from metaseg_cli.core.cache.settings import ChosenSettings, choose_settings, file_channels, settings_record
from metaseg_cli.core.cache.shown_names import ShownNames
from metaseg_cli.core.cache.summary import fingerprint, label_notes, sequence_notes
from metaseg_cli.core.cache.writing import (
    ShardJob,
    case_key,
    commit_index,
    exclusive_cache_writer,
    reusable_cases,
    shard_jobs,
    write_shard,
)
from metaseg_cli.core.label_maps import region_masks

__all__ = [
    "LISTING_FILE",
    "SCHEMA",
    "BuiltCases",
    "CacheSettings",
    "CaseOrigin",
    "CaseRecord",
    "ChosenSettings",
    "FoldAssignment",
    "OriginalScan",
    "PrepareResult",
    "Prepared",
    "ShardJob",
    "ShownNames",
    "WrittenCase",
    "assign_folds",
    "build_shards",
    "case_key",
    "choose_settings",
    "commit_index",
    "dataset_warnings",
    "exclusive_cache_writer",
    "file_channels",
    "fingerprint",
    "label_notes",
    "open_prepared",
    "region_masks",
    "reusable_cases",
    "sequence_notes",
    "settings_record",
    "shard_jobs",
    "write_shard",
]
