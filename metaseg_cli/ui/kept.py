"""What a session keeps between reruns: it is gone with the session, and nobody else's page sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import streamlit as st

Value = TypeVar("Value")


def kept(kind: str, key: object, make: Callable[[], Value], most: int) -> Value:
    """Return what was made for *key*, or make it now; of each *kind* the *most* that were used last are kept."""
    values: dict[object, object] = st.session_state.setdefault(f"kept {kind}", {})
    value = values.pop(key) if key in values else make()
    values[key] = value
    while len(values) > most:
        del values[next(iter(values))]
    return cast(Value, value)
