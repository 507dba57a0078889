"""The dtypes that products are computed in, under autocast or without, and that states are kept in."""

import torch
from torch import Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """What torch's own products would compute in: autocast's precision, else the tensor's."""
    if tensor.is_meta:  # a device without autocast to be asked for
        return tensor.dtype
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def state_dtype(weight: Tensor) -> torch.dtype:
    """What states are kept in beside a weight, whatever the precision around: at least float32, or small sums would be lost."""
    return torch.promote_types(weight.dtype, torch.float32)
