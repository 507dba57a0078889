"""How the workers of a Ray that was started here meet: in a file and over loopback, so that nobody else can join them."""

import ipaddress
import os
import socket
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


def torch_config() -> TorchConfig:
    """For the cluster that is connected: Train's own, or one that stays on this machine where the cluster does."""
    stays_here = ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback
    return LoopbackConfig() if stays_here else TorchConfig()


class LoopbackConfig(TorchConfig):
    """A process group on loopback. Torch's own meeting place, TCPStore, listens on all interfaces and asks for no token."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Train's controller sets the group up with."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    _place: Path

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Have the workers meet; of a group that is started again, in a new place."""
        self._place = Path(tempfile.gettempdir()) / f"mixrack-workers-{uuid4().hex}"
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(_use_loopback)
        worker_group.execute(_set_torch_distributed_env_vars)
        n_workers = len(worker_group)
        ready = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend="nccl" if has_gpus else "gloo",
                world_rank=rank,
                world_size=n_workers,
                init_method=self._place.as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(n_workers)
        ]
        ray.get(ready)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Part, and clear up."""
        super().on_shutdown(worker_group, backend_config)
        self._place.unlink(missing_ok=True)


def _use_loopback() -> None:
    """Gloo would listen at the address that the machine's name stands for, NCCL at any."""
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
