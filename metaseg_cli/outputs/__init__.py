"""JSON documents and CSV tables, written from the dataclasses of ``core.results``: the only writers of results."""
