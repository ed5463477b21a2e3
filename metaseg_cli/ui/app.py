"""The app behind ``metaseg serve-ui``: the login, and the menu of pages."""

from __future__ import annotations

import streamlit as st

from metaseg_cli.ui.login import logged_in
from metaseg_cli.ui.views import PAGES


def main() -> None:
    """Draw the page that the visitor has chosen."""
    st.set_page_config(page_title="metaseg", page_icon="🧠", layout="wide")
    st.title("metaseg")
    if not logged_in():
        return
    pages = [st.Page(page.show, title=page.title, url_path=page.address) for page in PAGES]
    st.navigation(pages, position="sidebar" if len(pages) > 1 else "hidden").run()


main()
