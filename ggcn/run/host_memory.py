"""Whether a rank's copy of its state fits into the memory of its node."""

import logging
from contextlib import suppress
from pathlib import Path

import psutil

from ggcn import environment

log = logging.getLogger(__name__)

SHARE = 0.5
"""largest share of the free memory that copies may take"""
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""limit, usage and the entry of memory.stat for pages of files, by the version of cgroups"""
_logged: set[bool] = set()


def has_room_for(size: int) -> bool:
    """Whether a copy of `size` bytes fits into the free memory, also if all ranks of this node make one; logs the first
    time that it does, and warns the first time that it does not."""
    free, ranks = available(), environment.integer("LOCAL_WORLD_SIZE") or 1
    fits = size * ranks <= SHARE * free
    if fits not in _logged:
        _logged.add(fits)
        if fits:
            log.info(
                "checkpoints are copied to %.2f GB of the %.1f GB of free memory", size / 1e9, free / 1e9
            )
        else:
            log.warning(
                "a copy of the state takes %.2f GB in each of %d ranks on this node, and %.1f GB are free: training "
                "waits until a checkpoint is written",
                size / 1e9,
                ranks,
                free / 1e9,
            )
    return fits


def available() -> int:
    """Bytes of memory that this process can still use: those free on the machine, or left in its cgroup, as a job's
    limit makes them."""
    return min([psutil.virtual_memory().available, *_left_in_cgroups()])


def _left_in_cgroups(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Bytes left below the memory limit of this process's cgroup and of each above it that has one. Pages of files
    count as free, since they are given up first."""
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            number, controllers, path = line.split(":", 2)
            version, base = (1, root / "memory") if controllers == "memory" else (2, root)
            if controllers == "memory" or (number, controllers) == ("0", ""):
                folder = base / path.lstrip("/")
                above = [place for place in folder.parents if place == base or base in place.parents]
                lefts = [_left(place, FILES[version]) for place in (folder, *above)]
                if any(left is not None for left in lefts):
                    return [left for left in lefts if left is not None]
    return []


def _left(folder: Path, names: tuple[str, str, str]) -> int | None:
    """Bytes left below the limit of one cgroup; None where it has none."""
    limit_name, usage_name, file_pages = names
    with suppress(OSError, ValueError):
        limit = int((folder / limit_name).read_text(encoding="utf-8"))  # ValueError: "max"
        used = int((folder / usage_name).read_text(encoding="utf-8"))
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        return max(0, limit - used + int(dict(line.split() for line in lines).get(file_pages, 0)))
    return None
