"""Split free text into words: series descriptions, file names and structure names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import lru_cache
from itertools import groupby

# A minus sign stands at the edge of a word, as in "T1 -C" and "C- 3D"; elsewhere it is a hyphen.
_SIGNS = re.compile(r"[+*/]|(?<=\s)-(?=\w)|(?<=\w)-(?=\s|$)")
_PARTS = re.compile(rf"[^\W_]+|{_SIGNS.pattern}")
_INITIALS = re.compile(r"(?<![^\W_])(?:[^\W\d_]\.){2,}")  # m.d.c., i.v.
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
_LONGEST = 64  # a longer run of letters and digits is an identifier, not words written together


def nfc(text: str) -> str:
    """Return *text* in the Unicode form in which names are compared (NFC); macOS stores file names in NFD."""
    return unicodedata.normalize("NFC", text)


def strip_accents(text: str) -> str:
    """Remove accents and umlauts, and replace compatibility characters: ``Après`` → ``Apres``."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_DASHES))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def words(text: str, vocabulary: Collection[str] = (), *, signs: bool = False) -> tuple[str, ...]:
    """Return the words of *text* in lower case, without accents.

    Words end at blanks, underscores and punctuation, between letters and digits, and where the case changes; ``t1`` and
    ``t2`` stay whole, and so does each word of *vocabulary*. Text without separators (``AXT1POSTGD``) is split if it is
    a chain of words of *vocabulary*. With *signs*, ``+ * / -`` are words too.
    """
    found: list[str] = []
    plain = _INITIALS.sub(lambda m: m.group().replace(".", "") + " ", strip_accents(text))
    for part in _PARTS.findall(plain):
        if part[0].isalnum():
            found += _split(part, frozenset(vocabulary))
        elif signs:
            found.append(part)
    return tuple(found)


def _split(part: str, vocabulary: frozenset[str]) -> list[str]:
    whole = _known(part, vocabulary)
    if whole:
        return whole
    pieces = _by_case(part, vocabulary)
    return [word for piece in pieces for word in _known(piece, vocabulary) or [piece.casefold()]]


def _known(part: str, vocabulary: frozenset[str]) -> list[str]:
    """Return *part* as one word of the vocabulary or as a chain of them; empty when it is neither."""
    lower = part.casefold()
    return [lower] if lower in vocabulary else list(_chain(lower, vocabulary) or ())


def _by_case(part: str, vocabulary: frozenset[str]) -> list[str]:
    """Split where case or digits change: ``AxT1POSTGd`` → Ax, T1, POST, Gd; ``GTVp1`` → GTV, p, 1."""
    runs = ["".join(group) for _, group in groupby(part, key=_kind)]
    pieces: list[str] = []
    for run in runs:
        before = pieces[-1] if pieces else ""
        if run.isdigit() and before in ("t", "T") and run in ("1", "2"):
            pieces[-1] = before + run
        elif before.isdigit() and run[0] in "dD" and before in ("2", "3") and not run[1:2].islower():
            pieces[-1:] = [before + run[0], *([run[1:]] if run[1:] else [])]
        elif before.isupper() and before.isalpha() and run.islower():
            # The last capital begins the new word, unless the capitals form a word or only one small letter follows.
            one = len(run) == 1 and not _known(before[:-1], vocabulary)
            apart = len(before) > 1 and (one or bool(_known(before, vocabulary)))
            pieces[-1:] = [before, run] if apart else [*([before[:-1]] if before[:-1] else []), before[-1] + run]
        else:
            pieces.append(run)
    return pieces


def _kind(character: str) -> str:
    if character.isdigit():
        return "digit"
    return "upper" if character.isupper() else "lower"


@lru_cache(maxsize=4096)
def _chain(text: str, vocabulary: frozenset[str]) -> tuple[str, ...] | None:
    """Return *text* as the fewest words of *vocabulary* and numbers; among equals the one with the longest first words.

    A single letter is a word only after ``t1``, ``t2`` or another single letter (``t1wc``): otherwise every name would
    contain words by chance. No number follows a word that ends in one: T10 is a vertebra.
    """
    if not vocabulary or len(text) > _LONGEST:
        return None
    best: dict[tuple[int, str], tuple[str, ...] | None] = {}

    def from_(start: int, before: str) -> tuple[str, ...] | None:
        if start == len(text):
            return ()
        if (start, before) not in best:
            candidates = []
            for word in _beginnings(text, start, vocabulary):
                if (len(word) == 1 and word.isalpha() and not (before[-1:].isdigit() or len(before) == 1)) or (
                    word.isdigit() and before[-1:].isdigit()
                ):
                    continue
                rest = from_(start + len(word), word)
                if rest is not None:
                    candidates.append((word, *rest))
            best[start, before] = min(candidates, key=len) if candidates else None
        return best[start, before]

    chain = from_(0, "")
    # A number with a letter is not a chain of words ("c9", "12a").
    return chain if chain and any(len(word) > 1 and not word.isdigit() for word in chain) else None


def _beginnings(text: str, start: int, vocabulary: frozenset[str]) -> list[str]:
    """Return words that may begin at *start*, longest first: a whole number, or words of *vocabulary*."""
    number = re.compile(r"\d+").match(text, start)
    numbers = [number.group()] if number else []
    lengths = range(min(len(text) - start, 24), 0, -1)
    return numbers + [text[start : start + n] for n in lengths if text[start : start + n] in vocabulary]
