"""Every kernel against its op's reference, on a GPU: outputs and gradients, in half precision and in float32, at odd lengths.

At small sizes, and at those of real models.
"""

import pytest
import torch
from torch.nn import attention

from models import MIXERS
from models.ops.kernels.dispatch import compute_capability, obstacle
from models.ops.kernels.kernel import unsuited
from models.ops.kernels.package import load_package
from models.ops.kernels.table import OPS
from tests.models.cases import build, noise
from tests.models.kernel_cases import (
    CASES,
    KERNELS,
    LARGE,
    LENGTHS,
    LONG,
    ONLY_HALVES,
    SMALL,
    arguments,
    assert_parity,
    kernel_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # compilers and their packages warn of themselves
    pytest.mark.filterwarnings("error:flex_attention called without torch.compile"),  # with scores of time x time
]

# Of the norm: an eighth of bfloat16's last bit adds up over a recurrence; TF32 keeps ten bits.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 1e-2, torch.float32: 1e-4}
TF32_TOLERANCE = 5e-3
MIXER_TOLERANCE = 0.1  # both round to bfloat16, at different places
D_MODEL = 128


@pytest.fixture(autouse=True)
def restored():
    """The switch of torch's flash attention, which is the process's."""
    yield
    if hasattr(attention, "restore_flash_attention_impl"):
        attention.restore_flash_attention_impl(_raise_warn=False)


def usable_kernel(op, name):
    """The kernel, if it is there and for this GPU; else the test is skipped, and says why."""
    kernel = kernel_of(op, name)
    if isinstance(reason := load_package(kernel.package, kernel.function), str):
        pytest.skip(reason)
    if reason := unsuited(kernel, compute_capability()):
        pytest.skip(reason)
    return kernel


def assert_all_cases(op, name, time, sizes, dtype):
    kernel, n_compared = usable_kernel(op, name), 0
    tolerance = TF32_TOLERANCE if kernel.rounds_float32 and dtype == torch.float32 else TOLERANCES[dtype]
    for case in range(len(CASES[op])):
        tensors, options = arguments(op, case, time, sizes=sizes, dtype=dtype, device="cuda")
        if obstacle(kernel, tuple(tensors), options) is None:
            assert_parity(op, name, tensors, options, tolerance=tolerance)
            n_compared += 1
    # Windows need a longer sequence; some kernels know no float32.
    assert n_compared or (name == "flex" and time == 1) or (dtype == torch.float32 and op in ONLY_HALVES)


@pytest.mark.parametrize(("op", "name"), KERNELS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_kernel_gives_what_the_reference_gives(op, name, time, dtype):
    assert_all_cases(op, name, time, SMALL, dtype)


@pytest.mark.parametrize(("op", "name"), KERNELS)
@pytest.mark.parametrize("time", LONG)
@pytest.mark.parametrize("sizes", LARGE, ids=lambda sizes: str(sizes.d_key))
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_kernel_gives_what_the_reference_gives_at_the_sizes_of_models(op, name, time, sizes, dtype):
    assert_all_cases(op, name, time, sizes, dtype)


MIXERS_BY_KERNEL = [
    (kind, kernel.name)
    for kind in MIXERS
    if getattr(MIXERS[kind], "kernel_op", None)
    for kernel in OPS[MIXERS[kind].kernel_op].kernels
]


@pytest.mark.parametrize(("kind", "name"), [each for each in MIXERS_BY_KERNEL if each[1] != "flex"])
def test_a_mixer_by_kernel_trains_as_by_reference(kind, name):
    usable_kernel(MIXERS[kind].kernel_op, name)
    found = []
    for kernel in (name, "reference"):
        mixer, x = build(MIXERS, {"kind": kind, "kernel": kernel}, d_model=D_MODEL).cuda(), noise(2, 65, D_MODEL).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            output = mixer(x)
        loss = (output.float() * noise(*output.shape, seed=2).cuda()).sum()
        found.append([output, *torch.autograd.grad(loss, list(mixer.parameters()))])
    for one, other in zip(*found, strict=True):
        assert (one.float() - other.float()).norm() <= MIXER_TOLERANCE * other.float().norm()
