"""The tests of the backends, in a process of their own.

On processors with matrix registers (AMX), OpenVINO and torch's training in bf16 in one process leave these registers
in use; a signal that a test sends itself afterwards (Ctrl-C) then finds too little stack and ends the whole run.
Prediction alone takes the signal well, which is tested here too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_other_programs_that_run_the_network() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "backends_alone.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
