"""What of the project travels to the workers of a cluster, and whether Ray takes it: `python -m launch.upload`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

from configs import ConfigError

PROJECT = Path(__file__).parents[1]
SUBMIT_LIMIT, JOIN_LIMIT = DASHBOARD_CLIENT_MAX_SIZE, GCS_STORAGE_MAX_SIZE
"""Bytes from which on Ray refuses: `ray job submit` sends them to the dashboard, a driver that joins to the head node."""
N_NAMED = 5


def check_upload(project: Path = PROJECT, excluded: Sequence[str] = (), limit: int = SUBMIT_LIMIT) -> int:
    """The bytes that would travel: what neither .gitignore, .rayignore nor `excluded` (patterns of the same kind) names.

    Ray packs files as they are, without compressing them, and leaves out what .gitignore names even if git tracks it.

    Raises:
        ConfigError: if that is more than Ray takes; the largest files are named.
    """
    sizes: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(project))] = path.stat().st_size

    project, silent = project.absolute(), logging.getLogger(f"{__name__}.walk")
    silent.setLevel(logging.CRITICAL)
    excludes = [_get_excludes(project, list(excluded))]
    _dir_travel(project, excludes, count, include_gitignore=True, logger=silent)  # the walk that Ray takes
    total = sum(sizes.values())
    if total >= limit:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:N_NAMED]
        raise ConfigError(
            f"{project}: {_mib(total)} of files would travel to the cluster, and Ray takes less than {_mib(limit)}; "
            f"the largest: {', '.join(f'{name} ({_mib(sizes[name])})' for name in largest)}. "
            f"Name in {project / '.rayignore'} what the workers do not need"
        )
    return total


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"


def _main() -> int:
    try:
        sys.stdout.write(f"{PROJECT}: {_mib(check_upload())} of files travel; Ray takes less than {_mib(SUBMIT_LIMIT)}\n")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
