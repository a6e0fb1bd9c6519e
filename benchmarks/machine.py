"""Where a run took place: the report says it, so that nobody compares two machines."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from benchmarks.peers import version

LIBRARIES = (
    "threadline",
    "msgspec",
    "google-adk",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "asyncmy",
    "openai-agents",
    "langgraph",
    "langgraph-checkpoint-sqlite",
)

_VIRTUAL = ("/dev/vd", "/dev/xvd", "overlay", "none")
_SYNCS = 200


def environment(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Return what a reader has to know of the machine, in the order to be printed."""
    facts = {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": sys.version.split()[0],
    }
    return facts | {library: version(library) for library in libraries}


def disk(directory: Path) -> dict[str, str]:
    """Return what a reader has to know of the disk that holds a directory."""
    device, kind = _mount(directory)
    return {
        "file system": f"{kind} on {device}",
        "disk": _disk(device, kind),
        "write and sync of 4 KiB": f"{_sync_s(directory) * 1e6:,.0f} us (median of {_SYNCS})",
    }


def _mount(directory: Path) -> tuple[str, str]:
    """Return the device and the type of the file system that holds the directory."""
    found = ("unknown", "unknown")
    longest = 0
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return found
    place = str(directory.resolve())
    for line in mounts.read_text().splitlines():
        device, point, kind, *_ = line.split()
        inside = point == "/" or place == point or place.startswith(point + "/")
        if inside and len(point) >= longest:
            found, longest = (device, kind), len(point)
    return found


def _disk(device: str, kind: str) -> str:
    if kind == "tmpfs":
        return "none: tmpfs is memory, syncs cost nothing and times of durable stores mean little"
    if device.startswith(_VIRTUAL):
        return "a virtual one: a sync may cost less, or vary more, than on a disk of your own"
    return "not known to be virtual"


def _sync_s(directory: Path) -> float:
    """Return how long the disk takes to make 4 KiB durable."""
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(_SYNCS):
            start = perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            sync(file.fileno())
            times.append(perf_counter() - start)
    return statistics.median(times)
