"""What ``metaseg prepare --json`` prints."""

from __future__ import annotations

from metaseg_cli.core.cache import PrepareResult
from metaseg_cli.core.typed_json import JsonValue, as_json


def prepare_document(result: PrepareResult) -> JsonValue:
    """Return the result; of a dry run ``cases`` are those that would be read, with their files by sequence."""
    document = as_json(result)
    assert isinstance(document, dict)
    return document if result.out is not None else {**document, "cases": document["found"]}
