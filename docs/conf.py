"""The documentation site: ``nox -s docs`` builds it into docs/_build."""

from __future__ import annotations

import metaseg_cli

project = "metaseg"
author = copyright = "The metaseg developers"
version = release = metaseg_cli.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"metaseg {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# Links to files of the repository outside docs/ (LICENSE, tests/…) are checked by tests/test_docs.py.
suppress_warnings = ["myst.xref_missing"]
