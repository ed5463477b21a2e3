"""What the challenge's evaluation package of 2026 says of mask pairs; runs in an environment of its own.

    python panoptica_scores.py pairs.npz scores.json

*pairs.npz* holds ``r0``, ``p0``, ``s0`` (reference, prediction, spacing), ``r1`` …
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from brats_evaluation.metrics_parser import parse_mets_results
from panoptica import Panoptica_Evaluator


def main() -> None:
    pairs = np.load(sys.argv[1])
    evaluator = Panoptica_Evaluator.load_from_config(str(files("brats_evaluation") / "configs" / "config_mets.yaml"))
    rows = []
    for i in range(len(pairs.files) // 3):
        masks = [(pairs[f"{name}{i}"] > 0).astype(np.uint8) * 3 for name in "pr"]
        spacing = tuple(float(s) for s in pairs[f"s{i}"])
        result = evaluator.evaluate(*masks, voxelspacing=spacing, verbose=False)["et"].to_dict(True)
        with tempfile.TemporaryDirectory() as folder:
            summary, table = Path(folder) / "a.json", Path(folder) / "a.csv"
            document = {"metrics": [{"subject_name": "a", "et": result}], "missings": []}
            summary.write_text(json.dumps(document, default=float))
            parse_mets_results(str(summary), 27, 0.2, str(table))
            with table.open() as file:
                row = next(csv.DictReader(file))
        more = {name: result[name] for name in ("sq_dsc", "sq_hd95", "sq_nsd", "pq_dsc")}
        rows.append({k.removesuffix("_et"): float(v or "nan") for k, v in row.items() if k != "subject_id"} | more)
    Path(sys.argv[2]).write_text(json.dumps(rows, default=float))


if __name__ == "__main__":
    main()
