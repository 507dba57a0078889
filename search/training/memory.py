"""The most memory that a process, or its CUDA device, has held since some moment; and giving back what is of no use."""

import ctypes
import gc
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The most memory since this was made: on CUDA what torch has allocated, on a CPU all that the process holds.

    A process keeps some of what it has freed, and counts all that it has imported.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _RESET.exists():
            try:
                _RESET.write_text("5", encoding="ascii")  # the mark goes down to what is held now
            except OSError:  # a sandbox may forbid it: the mark is that of the whole process then
                return

    def bytes(self) -> int | None:
        """None where the system does not tell it: on a CPU only Linux does."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.exists() else []
        marks = [line.split() for line in lines if line.startswith("VmHWM:")]
        return 1024 * int(marks[0][1]) if marks else None


def give_back() -> None:
    """Free what nothing but itself refers to, and return to the system what glibc keeps of freed memory for later.

    Between two parts of a job whose models are large: neither happens soon by itself, and the second part would come on top.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
