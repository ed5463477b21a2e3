"""The pages of the app, in the order of its menu. A page is one file here and one row of ``PAGES``.

The folder is not called pages: Streamlit would take each file of such a folder for an app of its own.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page; its ``module`` has ``show()``, which draws it from top to bottom at each rerun."""

    title: str
    address: str  # the last part of its URL
    module: str

    def show(self) -> None:
        """Draw the page; what it needs loads when it is opened."""
        importlib.import_module(self.module).show()


PAGES = (Page(title="Segment", address="segment", module="metaseg_cli.ui.views.segment"),)
