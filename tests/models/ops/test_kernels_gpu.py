"""Every kernel against its op's reference, on a GPU: outputs and gradients, in half precision and in float32, at odd lengths."""

import pytest
import torch

from models import MIXERS
from models.ops.kernels.dispatch import obstacle
from models.ops.kernels.package import load_package
from models.ops.kernels.table import OPS
from tests.models.cases import build, noise
from tests.models.kernel_cases import CASES, KERNELS, LENGTHS, ONLY_HALVES, arguments, assert_parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # compilers and their packages warn of themselves
]

# Of the norm: an eighth of bfloat16's last bit adds up over a recurrence; TF32 keeps ten bits.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 1e-2, torch.float32: 1e-4}
TF32_TOLERANCE = 5e-3
MIXER_TOLERANCE = 0.1  # both round to bfloat16, at different places
D_MODEL = 128


def kernel_of(op, name):
    """The kernel, if it is there; else the test is skipped, and says why."""
    kernel = next(kernel for kernel in OPS[op].kernels if kernel.name == name)
    if isinstance(reason := load_package(kernel.package, kernel.function), str):
        pytest.skip(reason)
    return kernel


@pytest.mark.parametrize(("op", "name"), KERNELS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_kernel_gives_what_the_reference_gives(op, name, time, dtype):
    kernel, n_compared = kernel_of(op, name), 0
    tolerance = TF32_TOLERANCE if kernel.rounds_float32 and dtype == torch.float32 else TOLERANCES[dtype]
    for case in range(len(CASES[op])):
        tensors, options = arguments(op, case, time, dtype=dtype, device="cuda")
        if obstacle(kernel, tuple(tensors), options) is None:
            assert_parity(op, name, tensors, options, tolerance=tolerance)
            n_compared += 1
    # Windows need a longer sequence; two kernels know no float32.
    assert n_compared or (name == "flex" and time == 1) or (dtype == torch.float32 and op in ONLY_HALVES)


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if getattr(MIXERS[kind], "kernel_op", None)])
def test_a_mixer_by_kernel_trains_as_by_reference(kind):
    op = MIXERS[kind].kernel_op
    name = OPS[op].kernels[0].name
    kernel_of(op, name)
    found = []
    for kernel in (name, "reference"):
        mixer, x = build(MIXERS, {"kind": kind, "kernel": kernel}, d_model=D_MODEL).cuda(), noise(2, 65, D_MODEL).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            output = mixer(x)
        loss = (output.float() * noise(*output.shape, seed=2).cuda()).sum()
        found.append([output, *torch.autograd.grad(loss, list(mixer.parameters()))])
    for one, other in zip(*found, strict=True):
        assert (one.float() - other.float()).norm() <= MIXER_TOLERANCE * other.float().norm()
