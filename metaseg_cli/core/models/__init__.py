"""The networks. What can be chosen by name is in ``core.choices``; this package builds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metaseg_cli.core.choices import DEFAULT_WIDTHS

if TYPE_CHECKING:
    from metaseg_cli.core.models.registry import build_model

__all__ = ["DEFAULT_WIDTHS", "build_model"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only building a network waits for it.
    if name == "build_model":
        from metaseg_cli.core.models.registry import build_model

        return build_model
    raise AttributeError(name)
