"""Flash-linear-attention's own Triton code in Triton's interpreter, beside the references: outputs and gradients, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.ops.kernels.package import FLA, FLEX
from tests.models.kernel_cases import KERNELS, ONLY_HALVES

INTERPRETED = [op for op, name in KERNELS if name == "fla"]
ROOT = Path(__file__).parents[3]
LACK = FLA.lack() or FLEX.lack()
TOLERANCES = {"float32": 1e-5, "float16": 2e-3}

pytestmark = [pytest.mark.triton, pytest.mark.skipif(LACK is not None, reason=str(LACK))]


@pytest.fixture(scope="module")
def compared():
    command = [sys.executable, "-m", "tests.models.ops.interpreted"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_give_what_the_references_give(compared):
    wrong = [each for each in compared if not all(error < TOLERANCES[each[1]] for error in each[3])]
    assert wrong == []


def test_all_kernels_are_compared_forward_and_backward(compared):
    by_op = {op: {dtype for name, dtype, *_ in compared if name == op} for op in INTERPRETED}
    assert by_op == {op: {"float16"} if op in ONLY_HALVES else {"float16", "float32"} for op in INTERPRETED}
    assert all(len(found) >= 4 for *_, found in compared)
