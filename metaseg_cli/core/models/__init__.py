"""The two networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metaseg_cli.core.models.names import DEFAULT_WIDTHS, MODEL_NAMES, is_model_name, model_name

if TYPE_CHECKING:
    from metaseg_cli.core.models.registry import build_model

__all__ = ["DEFAULT_WIDTHS", "MODEL_NAMES", "build_model", "is_model_name", "model_name"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; whoever only checks a name does not wait for it.
    if name == "build_model":
        from metaseg_cli.core.models.registry import build_model

        return build_model
    raise AttributeError(name)
