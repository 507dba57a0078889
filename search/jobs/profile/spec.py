"""What a measurement of latencies is: the space, the shapes, the device."""

from typing import Literal

from pydantic import PositiveInt

from configs import Spec
from models import RackSpec
from search.profiling.latency import LatencyMode
from search.training.spec import Device


class ProfileSpec(Spec):
    """What is timed, and at which shapes.

    `prefill` is the forward pass of `batch_size` sequences of `seq_len`; `decode` one position of each after `seq_len` others,
    for mixers that have a step form. A time is the median of `repeats` calls after some to warm up.
    """

    job: Literal["profile"] = "profile"
    rack: RackSpec
    mode: LatencyMode = "prefill"
    batch_size: PositiveInt = 1
    seq_len: PositiveInt = 1024
    repeats: PositiveInt = 20
    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
