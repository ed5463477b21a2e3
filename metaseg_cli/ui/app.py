"""The app behind ``metaseg serve-ui``: the login, and the menu of pages."""

from __future__ import annotations

import streamlit as st

from metaseg_cli.ui.login import logged_in
from metaseg_cli.ui.views import PAGES

# Viewer and list of lesions are to be seen without scrolling on a laptop; carriers of arrays are not to be seen at all.
_STYLE = """<style>
.stMainBlockContainer {padding-top: 1rem; padding-bottom: 0.5rem}
.stMainBlockContainer .stVerticalBlock {gap: 0.4rem}
.stMainBlockContainer h2 {padding: 0; font-size: 1.5rem; line-height: 1.6}
.st-key-carriers {display: none}
@media (max-width: 800px) {.stMainBlockContainer {padding-top: 3.75rem}}
</style>"""


def main() -> None:
    """Draw the page that the visitor has chosen."""
    st.set_page_config(page_title="metaseg", page_icon="🧠", layout="wide")
    st.html(_STYLE)
    st.header("metaseg", anchor=False)
    if not logged_in():
        return
    pages = [st.Page(page.show, title=page.title, url_path=page.address) for page in PAGES]
    st.navigation(pages, position="sidebar" if len(pages) > 1 else "hidden").run()


main()
