"""Ways in which files go wrong: cut, flipped, spliced, and their numbers replaced by the worst ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_EXTREMES = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_TEXTS = (
    b"",
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"-inf",
    b"99999999999999999999",
    b"1000000000",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"../../etc/hostname",
    b"/etc/hostname",
    b"\0",
    b"\xff\xfe",
    b"%d",
    b"LIST",
    b"[" * 2000,
    b"true",
)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_bytes(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 4))):
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_number(data: bytearray, rng: random.Random) -> None:
    """Somewhere, a number of 2, 4 or 8 bytes becomes an extreme one."""
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    at = _place(data, rng)
    value = rng.choice(_EXTREMES) & (2 ** (8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, order)[: len(data) - at]


def _set_real(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at : at + 4] = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\0", b"\xff\xff\x7f\x7f", b"\1\0\0\0"))


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 200))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.choice((rng.randbytes(rng.choice((1, 4, 100))), b"\0" * 8, b"\xff" * 8))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((4, 16, 128, 1024))]


def _blank(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    length = min(len(data) - at, rng.choice((16, 128, 1024)))
    data[at : at + length] = bytes(length)


def _swap(data: bytearray, rng: random.Random) -> None:
    a, b = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    length = min(rng.choice((4, 32, 256)), b - a, len(data) - b)
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def _replace_token(data: bytearray, rng: random.Random) -> None:
    """In a header of text, one number or word becomes another."""
    found = [m.span() for m in re.finditer(rb"-?[\w.]+", bytes(data[:20000]))]
    if not found:
        return
    start, stop = rng.choice(found)
    data[start:stop] = rng.choice((*_TEXTS, bytes(data[slice(*rng.choice(found))])))


def _replace_line(data: bytearray, rng: random.Random) -> None:
    lines = bytes(data[:20000]).split(b"\n")
    at = rng.randrange(len(lines))
    lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, [lines[at] + rng.choice(_TEXTS)], [rng.choice(lines)]))
    data[:20000] = b"\n".join(lines)


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_cut, _flip_bits, _flip_bits, _set_bytes, _set_bytes, _set_number, _set_number, _set_real),
    *(_remove, _insert, _repeat, _blank, _swap, _replace_token, _replace_token, _replace_line),
)


def _place(data: bytearray, rng: random.Random) -> int:
    """Mostly among the first bytes: what a header says matters more than a voxel."""
    return rng.randrange(min(len(data), rng.choice((64, 400, 2000, len(data)))))


def mutant(data: bytes, seed: int) -> bytes:
    """*data* damaged in one to three ways; the same for the same *seed*."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not changed:
            break
        rng.choice(MUTATIONS)(changed, rng)
    return bytes(changed)
