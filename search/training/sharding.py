"""FSDP2: each rank keeps a share of every weight, gradient and moment, and gathers weights part by part as they are used."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from models.rack.choice import Choice
from models.rack.modules import Block


def shard(model: nn.Module) -> None:
    """Keep of every parameter this rank's share only; to be called on all ranks, before the optimizer is made.

    Each choice of a stochastic part, each block and what is left (embedding and head) is gathered by itself, so that parts
    that are not active are neither gathered nor reduced, and have no gradient. Gradients are summed, as `Ranks.exchange` does.
    The model must have been built alike on all ranks, on its device, and which of its parameters get a gradient must not
    depend on a rank's rows (it does in none of our parts; zeros for the others would also go to parts that are not active).
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - a second to import, for runs that shard alone
    from torch.distributed.fsdp import FSDPModule, fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    marks = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    choices = [part for choice in model.modules() if isinstance(choice, Choice) for part in choice.mixers.children()]
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for module in [*choices, *blocks, model]:
        if not isinstance(module, FSDPModule):  # a shared block stands at several places
            sharded = fully_shard(module, mesh=mesh)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(enable=True)  # gloo knows no scaled sums
    for name, parameter in model.named_parameters():  # other objects than before: what was written on them goes along
        vars(parameter).update(marks[name])


def gathered(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors whole, in the memory of the host if they were shared out; all ranks must ask, for the same ones in order.

    Those that were shared out are given to the main rank alone, which writes them: on one machine, each rank's copy of a
    checkpoint would lie in the same memory.
    """
    found = {}
    for name, tensor in tensors.items():
        if not is_shared_out(tensor):
            found[name] = tensor
            continue
        whole = tensor.full_tensor()
        if dist.get_rank() == 0:
            found[name] = whole.cpu()
    return found


def is_shared_out(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, of which each rank has a share."""
    return hasattr(tensor, "device_mesh")


def shared_out(whole: Tensor, like: Any) -> Tensor:
    """A whole tensor in the form of another one: this rank's share, if that is shared out. Nothing is communicated."""
    if not is_shared_out(like):
        return whole
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - as above

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
