"""The dtype that products are computed in, under autocast or without."""

import torch
from torch import Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """What torch's own products would compute in: autocast's precision, else the tensor's."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
