"""How to store volumes in HDF5: size, write time, and read speed of slices with neighbours and of 96³ patches.

    python tests/benchmarks/cache.py [--volumes 3] [--reads 60] [--rounds 3]

Phantom-like volumes 4×155×240×240 in float16, smooth inside a head and 0 outside; the page cache is warm, and what is
read is converted to float32 by torch, as training does. Medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import torch
from scipy import ndimage

C, Z, Y, X = 4, 155, 240, 240
PATCH = 96
STORES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "slice, uncompressed": {"chunks": (1, C, Y, X)},
    "slice, LZ4": {"chunks": (1, C, Y, X), **hdf5plugin.LZ4()},
    "slice, bitshuffle LZ4": {"chunks": (1, C, Y, X), **hdf5plugin.Bitshuffle()},
    "slice, Blosc2 lz4": {"chunks": (1, C, Y, X), **hdf5plugin.Blosc2(cname="lz4")},
    "slice, Blosc2 zstd": {"chunks": (1, C, Y, X), **hdf5plugin.Blosc2(cname="zstd", clevel=1)},
    "slice, lzf": {"chunks": (1, C, Y, X), "compression": "lzf"},
    "slice, gzip": {"chunks": (1, C, Y, X), "compression": "gzip", "compression_opts": 1},
    "cubes of 32, uncompressed": {"chunks": (32, C, 32, 32)},
    "cubes of 32, LZ4": {"chunks": (32, C, 32, 32), **hdf5plugin.LZ4()},
}


def volume(seed: int) -> np.ndarray:
    """``(Z, C, Y, X)`` float16."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((Z, Y, X), dtype=np.float32)
    head = ((z - Z / 2) / 70) ** 2 + ((y - Y / 2) / 95) ** 2 + ((x - X / 2) / 75) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.normal(size=(C, Z, Y, X)).astype(np.float32), (0, 2, 2, 2)) * 8
    values = (texture + rng.normal(0, 0.05, (C, Z, Y, X))) * head
    return np.ascontiguousarray(values.transpose(1, 0, 2, 3)).astype(np.float16)


def read(files: list[h5py.File], reads: int, seed: int) -> tuple[float, float]:
    """Seconds per slice with two neighbours, and per 96³ patch."""
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(reads):
        z = int(rng.integers(1, Z - 1))
        torch.from_numpy(files[rng.integers(len(files))]["image"][z - 1 : z + 2]).float()
    slices = (time.perf_counter() - began) / reads
    began = time.perf_counter()
    for _ in range(max(1, reads // 4)):
        z, y, x = (int(rng.integers(0, n - PATCH)) for n in (Z, Y, X))
        box = (slice(z, z + PATCH), slice(None), slice(y, y + PATCH), slice(x, x + PATCH))
        torch.from_numpy(files[rng.integers(len(files))]["image"][box]).float()
    return slices, (time.perf_counter() - began) / max(1, reads // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--reads", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="metaseg-bench-"))
    arrays = [volume(seed) for seed in range(given.volumes)]
    written: dict[str, float] = {}
    for name, options in STORES.items():
        began = time.perf_counter()
        for number, array in enumerate(arrays):
            with h5py.File(folder / f"{name}-{number}.h5", "w") as file:
                file.create_dataset("image", data=array, **options)
        written[name] = time.perf_counter() - began
    opened = {
        name: [h5py.File(folder / f"{name}-{n}.h5", "r", rdcc_nbytes=0) for n in range(len(arrays))] for name in STORES
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in STORES}
    for turn in range(given.rounds):
        for name, files in opened.items():
            times[name].append(read(files, given.reads, turn))
    slice_mb, patch_mb = 3 * C * Y * X * 2 / 1e6, C * PATCH**3 * 2 / 1e6
    print(f"{'store':26} {'MB':>6} {'write s':>8} {'slices MB/s':>12} {'patches MB/s':>13}")
    for name in STORES:
        megabytes = sum((folder / f"{name}-{n}.h5").stat().st_size for n in range(len(arrays))) / 1e6
        slices = slice_mb / statistics.median(s for s, _ in times[name])
        patches = patch_mb / statistics.median(p for _, p in times[name])
        print(f"{name:26} {megabytes:6.0f} {written[name]:8.1f} {slices:12.0f} {patches:13.0f}")
    for files in opened.values():
        for file in files:
            file.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
