"""A drive that forgets what was not synced: an SQLite file system for apsw.

Files are really written, through SQLite's own file system. Beside them the drive keeps what
would be on the platter: a write reaches it when its file is synced, a new or deleted name when
its folder is. `cut` returns what a power cut at that moment leaves.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import apsw

SECTOR = 512

# SQLite syncs the folder with the first sync of a file that it created for one of these uses.
SYNCS_FOLDER = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL

Write = tuple[int, bytes] | int
"""Bytes at an offset, or a new size."""

Images = dict[str, bytes]
"""What is on the platter, by file name."""


class Platter:
    """One file's content: what is safe, and what was written since."""

    def __init__(self) -> None:
        self.safe = bytearray()
        self.pending: list[Write] = []

    def sync(self) -> None:
        """Make everything safe."""
        for write in self.pending:
            _apply(self.safe, write)
        self.pending.clear()

    def after_cut(self, rng: random.Random | None) -> bytes:
        """Return the safe bytes, with a random part of the pending sectors if asked to."""
        image = bytearray(self.safe)
        if rng is not None:
            share = rng.random()
            for write in self.pending:
                for piece in _sectors(write):
                    if rng.random() < share:
                        _apply(image, piece)
        return bytes(image)


def _apply(image: bytearray, write: Write) -> None:
    if isinstance(write, int):
        if write < len(image):
            del image[write:]
        else:
            image.extend(bytes(write - len(image)))
        return
    offset, data = write
    if offset > len(image):
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def _sectors(write: Write) -> list[Write]:
    """Cut a write where the drive might: between sectors, never inside one."""
    if isinstance(write, int):
        return [write]
    offset, data = write
    pieces: list[Write] = []
    start = 0
    while start < len(data):
        end = min(len(data), (offset + start) // SECTOR * SECTOR + SECTOR - offset)
        pieces.append((offset + start, data[start:end]))
        start = end
    return pieces


class Drive(apsw.VFS):
    """The file system; only names that it opened itself are on its platter.

    `look` is called before each write and sync: the moments at which a cut makes a difference.
    """

    def __init__(self, name: str, look: Callable[[], None]) -> None:
        self.name = name
        self.look = look
        self._names: dict[str, Platter] = {}
        self._safe_names: dict[str, Platter] = {}
        super().__init__(name, "")

    def xOpen(  # noqa: N802 (SQLite's name)
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        return DriveFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self._names.pop(Path(filename).name, None)
        if syncdir:
            self.sync_folder()

    def platter(self, name: str) -> Platter:
        """Return the file's platter; a new one for a new name."""
        return self._names.setdefault(name, Platter())

    def sync_folder(self) -> None:
        """Make names as safe as `sync` makes bytes."""
        self._safe_names = dict(self._names)

    def cut(self, rng: random.Random | None = None) -> Images:
        """Return what a power cut leaves now; with `rng`, some unsynced work made it too."""
        names = self._safe_names
        if rng is not None and rng.random() < 0.5:
            names = self._names
        return {name: platter.after_cut(rng) for name, platter in names.items()}


class DriveFile(apsw.VFSFile):
    """An open file, whose writes the drive hears of."""

    def __init__(self, drive: Drive, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._drive = drive
        self._syncs_folder = bool(flags[0] & SYNCS_FOLDER)
        if name is None:
            self._platter = Platter()  # a temporary file: nobody looks for it after a cut
        else:
            filename = name.filename() if isinstance(name, apsw.URIFilename) else name
            self._platter = drive.platter(Path(filename).name)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._drive.look()
        super().xWrite(data, offset)
        self._platter.pending.append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._drive.look()
        super().xTruncate(newsize)
        self._platter.pending.append(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._drive.look()
        super().xSync(flags)
        self._platter.sync()
        if self._syncs_folder:
            self._drive.sync_folder()
