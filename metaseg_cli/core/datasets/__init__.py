"""Find the cases of a folder, whatever its layout, by names and headers alone; and split patients into folds."""

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.find import find_cases, unread
from metaseg_cli.core.datasets.folds import split_folds
from metaseg_cli.core.datasets.manifest import manifest_template, read_manifest
from metaseg_cli.core.datasets.scans import scan_of, scans_under
from metaseg_cli.core.datasets.sequence_names import GENERIC, KNOWN, in_order, sequence_name

__all__ = [
    "GENERIC",
    "KNOWN",
    "CaseSource",
    "FoundCases",
    "find_cases",
    "in_order",
    "manifest_template",
    "read_manifest",
    "scan_of",
    "scans_under",
    "sequence_name",
    "split_folds",
    "unread",
]
