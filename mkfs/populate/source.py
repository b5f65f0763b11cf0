"""What can be put into a new filesystem: entries with everything that the format keeps of a file.

Below: nothing.  Above: directory.py and archive.py, which make entries; fill.py, which takes them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from mkfs.cli import ToolError
from nvmefs.clock import Timestamp

Range = tuple[int, int]  # (offset, length) in bytes


class Data(Protocol):
    """The bytes of a regular file. What no range covers is a hole; a read lies inside of one range, and comes
    not before the end of the one before it.
    """

    def ranges(self) -> Iterable[Range]: ...
    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(slots=True)
class Entry:
    """One name. `path` has no slash at either end and is empty for the root of the source; `shown` is what
    messages call it. `link_to` is the path of an earlier entry: then this is another name of it.
    """

    path: bytes
    shown: str
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: Timestamp = (0, 0)
    atime: Timestamp = (0, 0)
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    link_to: bytes | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    data: Data | None = None

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Source(Protocol):
    """Something to fill a filesystem from. Its entries are asked for once."""

    def __enter__(self) -> Source: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def entries(self) -> Iterator[Entry]:
        """Parents before what is in them; the data of an entry is read before the next is asked for.

        Raises ToolError, OSError with the path.
        """
        ...


def shown(path: bytes) -> str:
    """A path for messages."""
    return os.fsdecode(path) or "."


def wrong(what: str, why: str) -> ToolError:
    """An entry that cannot be taken."""
    return ToolError(f"{what}: {why}")
