"""Small disks of our own, that can be full, read-only, or lose their power."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

PATIENCE_S = 60.0
UNMOUNT_S_MAX = 5.0

# XFS_IOC_GOINGDOWN, which ext4 and others answer too: from here on the filesystem is dead.
# Flag 2 leaves the log unflushed, so what was not synced is gone, as after a power cut.
SHUTDOWN = 0x8004587D
WITHOUT_FLUSHING_THE_LOG = 2

CLONE_NEWNS = 0x00020000

MAKERS = {
    # With smaller blocks, SQLite of that disk when full would be killed by SIGBUS: it reserves
    # room for its shared memory by a byte in every 4 KiB.
    "mkfs.ext4": (["-q", "-F", "-b", "4096"], 64),
    "mkfs.xfs": (["-q", "-f"], 320),
}


class DiskUnavailableError(Exception):
    """This machine does not let us have such a disk; the message says why."""


def _run(*command: str) -> None:
    """Run a command, or say why it did not."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except OSError as error:
        raise DiskUnavailableError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise DiskUnavailableError(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    """Unmount, waiting for the last user of the disk to be gone."""
    end = time.monotonic() + UNMOUNT_S_MAX
    while os.path.ismount(folder):
        try:
            _run("umount", str(folder))
        except DiskUnavailableError as error:
            if time.monotonic() > end:
                # Let go of it lazily, so that nothing is left behind, and tell.
                _run("umount", "--lazy", str(folder))
                raise RuntimeError(f"{folder} is still in use") from error
            time.sleep(0.05)


@functools.cache
def _may_mount() -> None:
    """Move this process into a mount namespace of its own.

    Its mounts and loop devices go with it, even if it is killed before it could unmount them.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        raise DiskUnavailableError("only root on Linux can mount")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):  # `os.unshare` comes with Python 3.12
        raise DiskUnavailableError(f"unshare: {os.strerror(ctypes.get_errno())}")
    _run("mount", "--make-rprivate", "/")


@contextlib.contextmanager
def mounted(folder: Path, *mount: str) -> Iterator[Path]:
    """Mount something on a new folder; unmount it whatever happens."""
    _may_mount()
    folder.mkdir()
    _run("mount", *mount, str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def remount_read_only(folder: Path) -> None:
    """Let nobody write to a mounted disk any more."""
    _run("mount", "-o", "remount,ro", str(folder))


@contextlib.contextmanager
def tiny_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """Mount a disk that is soon full."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs"):
        # Not every sandbox takes the option seriously.
        size = os.statvfs(folder)
        if size.f_blocks * size.f_frsize > 2 * size_kib * 1024:
            raise DiskUnavailableError("the kernel does not limit the size of a tmpfs")
        yield folder


class LoopDisk:
    """A filesystem in a file, whose power can be cut."""

    def __init__(self, image: Path, folder: Path, size_mib: int = 0) -> None:
        self._image = image
        self.folder = folder
        maker = next((name for name in MAKERS if shutil.which(name)), None)
        if maker is None:
            raise DiskUnavailableError(f"none of {', '.join(MAKERS)} is installed")
        _may_mount()
        options, size_mib_min = MAKERS[maker]
        self.filesystem = maker.removeprefix("mkfs.")
        with image.open("wb") as file:
            file.truncate(max(size_mib, size_mib_min) << 20)
        _run(maker, *options, str(image))
        folder.mkdir()
        self.mount()

    def mount(self) -> None:
        """Attach the image to a free loop device, which goes when it is unmounted."""
        _run("mount", "-o", "loop", str(self._image), str(self.folder))

    def cut_power(self) -> None:
        """Let the filesystem die with everything that was not synced."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_LOG))
        except OSError as error:
            raise DiskUnavailableError(f"the shutdown ioctl: {error}") from error
        finally:
            os.close(descriptor)

    def restore_power(self) -> None:
        """Mount again, as after a boot; nobody may have a file of it open."""
        _unmount(self.folder)
        self.mount()

    def unmount(self) -> None:
        """Give everything back."""
        _unmount(self.folder)
        self._image.unlink()


@contextlib.contextmanager
def loop_disk(folder: Path, size_mib: int = 0) -> Iterator[LoopDisk]:
    """Make and mount a disk in a file below the folder; unmount it whatever happens."""
    disk = LoopDisk(folder / "disk.img", folder / "disk", size_mib)
    try:
        # A rehearsal, so that a kernel that cannot do it says so before any test begins.
        disk.cut_power()
        disk.restore_power()
        yield disk
    finally:
        disk.unmount()


def unavailable(what: str, error: Exception) -> NoReturn:
    """Skip a power cut by its name, or fail where the machine is known to be able to do it."""
    message = f"NOT RUN: {what}: {error}"
    if os.environ.get("THREADLINE_REQUIRE_POWER_CUT") == "1":
        pytest.fail(message)
    pytest.skip(message)
