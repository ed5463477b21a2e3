"""One name for each MRI sequence, whatever a folder calls it."""

from __future__ import annotations

import re

# The names of the BraTS challenges since 2023, in the order in which networks receive them.
KNOWN = ("t1n", "t1c", "t2w", "t2f")
_ALIASES = {
    "t1n": ("t1", "t1n", "t1w", "t1pre", "t1wpre", "t1native", "pret1"),
    "t1c": (
        "t1c", "t1ce", "t1gd", "t1gad", "t1post", "t1wpost", "t1wce", "t1wgd", "t1km", "t1contrast", "cet1", "cet1w",
        "t1wc", "t1contrastenhanced", "postt1", "t1postcontrast",
    ),
    "t2w": ("t2", "t2w"),
    "t2f": ("flair", "t2f", "t2flair", "t2wflair", "fl"),
}  # fmt: skip
_BY_ALIAS = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
# Names that say nothing of the contrast: they fit any one sequence.
GENERIC = ("image", "grey", "mri", "mr", "volume")

_T1 = re.compile(r"t1|mp.?rage|spgr|bravo|fspgr|tfl|vibe")
_CONTRAST = re.compile(r"gd|gad|\bce\b|[_ ]ce[_ ]?|post|\bkm\b|contrast|\+ ?c\b|\bc\+|dotarem|gado")


def known_sequence(text: str) -> str | None:
    """The known sequence that *text* is another name of, or None."""
    return _BY_ALIAS.get(re.sub(r"[^a-z0-9]", "", text.lower()))


def sequence_name(text: str) -> str:
    """The known name where there is one; otherwise *text* in lower case with underscores."""
    return known_sequence(text) or re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "image"


def from_description(text: str, contrast_agent: bool = False) -> str | None:
    """What a scanner's free text means (``AX T1 MPRAGE POST GAD``), or None where it does not say."""
    words = text.lower()
    if "flair" in words:
        return "t2f"
    if _T1.search(words):
        return "t1c" if contrast_agent or _CONTRAST.search(words) else "t1n"
    return "t2w" if "t2" in words and "t2*" not in words and "star" not in words else None


def in_order(names: set[str]) -> tuple[str, ...]:
    """Known sequences first, in their order, then the others by name: the same whatever order files came in."""
    return tuple(sorted(names, key=lambda n: (KNOWN.index(n) if n in KNOWN else len(KNOWN), n)))
