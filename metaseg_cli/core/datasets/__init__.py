"""Find the cases of a folder, whatever its layout, by names alone; and split patients into folds."""

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases, Problem
from metaseg_cli.core.datasets.find import LAYOUTS, find_cases
from metaseg_cli.core.datasets.folds import split_folds
from metaseg_cli.core.datasets.names import scans_in

__all__ = ["LAYOUTS", "CaseSource", "FoundCases", "Problem", "find_cases", "scans_in", "split_folds"]
