"""A directory of the host as a source: names in the order of their bytes, depth first.

Below: system calls.  Above: fill.py.

Directories are opened one below the other, never by their whole path: there may be more than PATH_MAX of it,
and nobody can slip in a symbolic link. Reading changes no access time where the kernel allows that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from types import TracebackType

from mkfs.populate.source import Entry, Range, shown, wrong

NS = 10**9
READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class DirectorySource:
    """The tree below a directory, which is the root itself. `forbidden` is (device, inode) of the image."""

    def __init__(self, path: str, forbidden: tuple[int, int] | None = None) -> None:
        self.path = path
        self.forbidden = forbidden
        self.root = -1
        self.first_names: dict[tuple[int, int], tuple[bytes, int]] = {}

    def __enter__(self) -> DirectorySource:
        self.root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        os.close(self.root)

    def entries(self) -> Iterator[Entry]:
        """See Source."""
        status = os.fstat(self.root)
        level = Level(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root), b"", status)
        levels: list[Level] = []
        try:
            yield self._entry(b"", f"/proc/self/fd/{self.root}/.", status)
            while True:
                name = level.next_name()
                if name is not None:
                    inner = yield from self._one(level, name)
                    if inner is not None:
                        levels.append(level)
                        level = inner
                elif levels:
                    level.leave_to(levels[-1], self._shown(level.path))
                    level = levels.pop()
                else:
                    return
        finally:
            os.close(level.descriptor)

    def _one(self, level: Level, name: str) -> Generator[Entry, None, Level | None]:
        """One name; if it is a directory, that is opened, and the one it is in is not any longer."""
        path = os.path.join(level.path, os.fsencode(name))
        what = self._shown(path)
        file = None
        try:
            status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self.forbidden:
                raise wrong(what, "is the image that is being made: put it elsewhere")
            linked = self._another_name(path, status)
            if linked is not None:
                entry = Entry(path, what, status.st_mode, link_to=linked)
            else:
                entry = self._entry(path, f"/proc/self/fd/{level.descriptor}/{name}", status)
                if stat.S_ISLNK(status.st_mode):
                    entry.target = os.fsencode(os.readlink(name, dir_fd=level.descriptor))
                elif stat.S_ISREG(status.st_mode) and status.st_size:
                    entry.data = file = OpenFile(name, level.descriptor, status, what)
            yield entry
            return level.enter(name, path, status) if entry.is_dir else None
        except OSError as error:
            raise wrong(what, error.strerror or str(error)) from error
        finally:
            if file is not None:
                file.close()

    def _another_name(self, path: bytes, status: os.stat_result) -> bytes | None:
        """The path under which this inode has come before. Inodes whose names have all come are forgotten."""
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode):
            return None
        number = (status.st_dev, status.st_ino)
        first, left = self.first_names.pop(number, (None, status.st_nlink))
        if left > 1:
            self.first_names[number] = (first if first is not None else path, left - 1)
        return first

    def _entry(self, path: bytes, place: str | bytes, status: os.stat_result) -> Entry:
        return Entry(
            path,
            self._shown(path),
            status.st_mode,
            status.st_uid,
            status.st_gid,
            divmod(status.st_mtime_ns, NS),
            divmod(status.st_atime_ns, NS),
            0 if stat.S_ISDIR(status.st_mode) else status.st_size,
            status.st_rdev,
            xattrs=attributes(place),
        )

    def _shown(self, path: bytes) -> str:
        return os.path.join(self.path, shown(path)) if path else self.path


class Level:
    """A directory on the way to where we are. Only the last of them is open, however many there are."""

    def __init__(self, descriptor: int, path: bytes, status: os.stat_result) -> None:
        self.descriptor = descriptor
        self.path = path
        self.identity = (status.st_dev, status.st_ino)
        self.names = sorted(os.listdir(descriptor), key=os.fsencode, reverse=True)

    def next_name(self) -> str | None:
        return self.names.pop() if self.names else None

    def enter(self, name: str, path: bytes, status: os.stat_result) -> Level:
        """The directory `name`, open; this one is closed. Raises OSError."""
        inner = open_quietly(name, READ_FLAGS | os.O_DIRECTORY, self.descriptor)
        try:
            level = Level(inner, path, status)
        except OSError:
            os.close(inner)
            raise
        os.close(self.descriptor)
        self.descriptor = -1
        return level

    def leave_to(self, outer: Level, what: str) -> None:
        """Close this directory and open again the one it is in. Raises OSError, ToolError."""
        outer.descriptor = os.open("..", READ_FLAGS | os.O_DIRECTORY, dir_fd=self.descriptor)
        os.close(self.descriptor)
        self.descriptor = outer.descriptor  # until it is forgotten, it is what is to be closed
        status = os.fstat(outer.descriptor)
        if (status.st_dev, status.st_ino) != outer.identity:
            raise wrong(what, "was moved while it was read")


class OpenFile:
    """The data of a regular file that is open. It must not change meanwhile."""

    def __init__(self, name: str, directory: int, status: os.stat_result, what: str) -> None:
        self.what = what
        self.size = status.st_size
        self.descriptor = open_quietly(name, READ_FLAGS, directory)
        now = os.fstat(self.descriptor)
        if (now.st_dev, now.st_ino, now.st_size) != (status.st_dev, status.st_ino, status.st_size):
            self.close()
            raise wrong(what, "changed while it was read")

    def close(self) -> None:
        os.close(self.descriptor)

    def ranges(self) -> Iterator[Range]:
        """What the host's filesystem says is data."""
        at = 0
        while at < self.size:
            try:
                start = os.lseek(self.descriptor, at, os.SEEK_DATA)
                at = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                if error.errno != errno.EINVAL:
                    raise wrong(self.what, error.strerror or str(error)) from error
                start, at = at, self.size  # a filesystem that cannot tell
            if start < self.size:
                yield start, min(at, self.size) - start

    def read(self, offset: int, length: int) -> bytes:
        """All of it: a file that has become shorter is an error."""
        try:
            data = os.pread(self.descriptor, length, offset)
            while len(data) < length:
                more = os.pread(self.descriptor, length - len(data), offset + len(data))
                if not more:
                    raise wrong(self.what, "became shorter while it was read")
                data += more
        except OSError as error:
            raise wrong(self.what, error.strerror or str(error)) from error
        return data


def open_quietly(name: str, flags: int, directory: int) -> int:
    """Open without changing the access time, which only the owner and root may ask for."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags, dir_fd=directory)


def attributes(place: str | bytes) -> dict[bytes, bytes]:
    """Extended attributes by name; {} where the filesystem has none. Raises OSError."""
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            return {}
        raise
    return {
        os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in sorted(names)
    }
