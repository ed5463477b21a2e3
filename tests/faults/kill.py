"""Stop and kill real calls at random moments: ``python tests/faults/kill.py --kills 200 --seed 0``.

After each one: the exit code and the message, no half-written file, no process left, and the same call again ends with
the undisturbed result. A line for each command; exit code 1 for any fault.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.calls import CALLS, MORE, make_inputs
from tests.faults.disturb import Outcome, disturb, draw, undisturbed

_ALL = {**CALLS, "export": MORE["export"]}


def digests(folder: Path) -> dict[str, str]:
    """Of every input: none may change."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="in all, spread evenly over the calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--call", action="append", choices=list(_ALL), help="only this one; may be repeated")
    parser.add_argument("--processes", type=int, default=2, help="calls at a time")
    options = parser.parse_args()
    names = options.call or list(_ALL)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        folder = Path(place)
        inputs = make_inputs(folder / "inputs")
        before = digests(inputs)
        plain = {name: undisturbed(_ALL[name], inputs, folder / "undisturbed" / name) for name in names}
        lasting = {name: each.seconds for name, each in plain.items()}

        def one(number: int, name: str) -> Outcome:
            moment = draw(np.random.default_rng([options.seed, number]), plain[name], lasting[name])
            outcome = disturb(_ALL[name], moment, plain[name], inputs, folder / f"{number:04d}")
            if outcome.ended == "finished before":  # the machine is less busy now
                lasting[name] = min(lasting[name], outcome.seconds)
            if outcome.faults:
                print(f"{name} {number} {moment}: {outcome.ended}", *outcome.faults, sep="\n  ", flush=True)
            if (number + 1) % 20 == 0:
                print(f"{number + 1} of {options.kills}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            return outcome

        turns = list(zip(range(options.kills), itertools.cycle(names), strict=False))
        with ThreadPoolExecutor(options.processes) as pool:
            outcomes = list(pool.map(lambda turn: one(*turn), turns))
        changed = digests(inputs) != before
    for name in names:
        mine = [o for o in outcomes if o.call == name]
        ended = Counter(o.ended for o in mine)
        counts = ", ".join(f"{n} {what}" for what, n in sorted(ended.items()))
        print(f"{name:18} {len(mine):4}: {counts}; {sum(bool(o.faults) for o in mine)} with faults")
    signals = Counter(o.moment.signal.name for o in outcomes)
    faults = sum(bool(o.faults) for o in outcomes)
    print(f"{len(outcomes)} kills ({dict(signals)}), {faults} with faults, {time.monotonic() - began:.0f} s")
    if changed:
        print("an input was changed")
    return 1 if faults or changed else 0


if __name__ == "__main__":
    sys.exit(main())
