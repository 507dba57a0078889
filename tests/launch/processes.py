"""Processes below a process: what they run, what they listen on, and their end."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

LISTENING, LOOPBACK = "0A", {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""As the kernel writes them: the state of a server's socket; 127.0.0.1, the same as an IPv6 address, ::1."""


def command(pid: int) -> bytes:
    """What a process runs; nothing once it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def servers(pid):
    """The sockets that a process listens on: (address, port), the address as the kernel writes it."""
    inodes = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        target = str(path.readlink()) if path.is_symlink() else ""
        if target.startswith("socket:"):
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return {
        (address, int(port, 16))
        for _, local, _, state, *rest in lines
        if state == LISTENING and rest[5] in inodes
        for address, _, port in [local.partition(":")]
    }


def kill_a_worker(history: Path, n_rows: int) -> None:
    """Kill the youngest of Train's workers below this process once a history has so many rows."""
    while not history.exists():
        time.sleep(0.02)
    victim = max(pid for pid in descendants(os.getpid()) if b"RayTrainWorker" in command(pid))
    while len(history.read_text().splitlines()) < n_rows:
        time.sleep(0.02)
    os.kill(victim, signal.SIGKILL)


def kill_with_workers(process: subprocess.Popen) -> str:
    """Kill a driver and all below it, for left to themselves workers go on for seconds; what it has printed."""
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    printed, _ = process.communicate()
    return printed
