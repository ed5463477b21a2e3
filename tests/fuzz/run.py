"""Run the fuzzer: ``python tests/fuzz/run.py --mutants 20000``. A line for each kind; exit code 1 for any fault."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import Fault, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000, help="in all, spread evenly over the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this one; may be repeated")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    names = options.kind or list(KINDS)
    each = -(-options.mutants // len(names))
    seeds = range(options.seed * 10**6, options.seed * 10**6 + each)
    began, faults, total = time.monotonic(), list[Fault](), 0
    with tempfile.TemporaryDirectory(prefix="metaseg-fuzz-") as folder, ThreadPoolExecutor(options.processes) as pool:
        for tally in pool.map(lambda name: fuzz(name, seeds, Path(folder)), names):
            total += tally.read + tally.refused + len(tally.faults)
            faults += tally.faults
            print(
                f"{tally.kind:20} {tally.read:6} read  {tally.refused:6} refused  {len(tally.faults):4} faults  "
                f"slowest {tally.slowest:.1f} s",
                flush=True,
            )
            for fault in tally.faults[:5]:
                print(f"  {fault.kind} seed {fault.seed}: {fault.what.strip()}\n", flush=True)
    print(f"{total} mutants, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
