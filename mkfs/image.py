"""Image files: made, grown, never shrunk, before a controller opens them.

Below: the host's files, in_use (who has them).  Above: mkfs.py.

    image = Image.at(spec, size_bytes)      None when the spec names no file; raises ToolError
    with image.sized():                     the file has its size; a new one goes if the body fails
        ...
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from driver.address import parse_address
from mkfs import in_use
from mkfs.cli import ToolError, UsageError, show_size
from nvmefs.layout import BLOCK_BYTES


@dataclass(frozen=True)
class Image:
    """An image file. `old_bytes` is None where there is none yet, `size_bytes` what it gets."""

    path: Path
    old_bytes: int | None
    size_bytes: int

    @property
    def is_new(self) -> bool:
        """Nothing can stand in it yet."""
        return not self.old_bytes

    @property
    def grows(self) -> bool:
        return self.old_bytes is not None and self.size_bytes > self.old_bytes

    @classmethod
    def at(cls, spec: str, size_bytes: int | None) -> Image | None:
        """The image that `spec` names, None for a controller. Raises ToolError, UsageError."""
        address = parse_address(spec)
        if address.kind != "file":
            if size_bytes is not None:
                raise UsageError(f"--size is for image files; {spec} has the size it has")
            return None
        path = Path(address.endpoint)
        in_use.refuse(path)
        try:
            status = path.stat()
        except FileNotFoundError:
            if size_bytes is None:
                raise ToolError(
                    f"{path}: no such file: give --size (for instance --size 8G) to create it"
                ) from None
            return cls(path, None, round_down(size_bytes))
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not an image file"
            raise ToolError(f"{path} is {kind}: give an image file or a controller's address")
        if size_bytes is None:
            return cls(path, status.st_size, status.st_size)
        if round_down(size_bytes) < round_down(status.st_size):
            raise ToolError(
                f"{path} has {show_size(status.st_size)} and is not shrunk to "
                f"{show_size(size_bytes)}: remove it first, or leave --size out"
            )
        return cls(path, status.st_size, max(round_down(size_bytes), status.st_size))

    @contextmanager
    def sized(self) -> Iterator[None]:
        """Create or extend the file. A file made here does not survive a failure of the body."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if self.old_bytes is None:
            flags |= os.O_CREAT | os.O_EXCL
        elif not self.grows:
            yield
            return
        descriptor = os.open(self.path, flags, 0o666)
        try:
            os.ftruncate(descriptor, self.size_bytes)
        except (OSError, OverflowError) as error:
            if self.old_bytes is None:
                self.path.unlink()
            raise ToolError(
                f"{self.path}: a size of {show_size(self.size_bytes)} is not possible here: "
                f"{getattr(error, 'strerror', 'too large for a file')}"
            ) from error
        finally:
            os.close(descriptor)
        try:
            yield
        except BaseException:
            if self.old_bytes is None:
                self.path.unlink(missing_ok=True)
            raise


def round_down(size_bytes: int) -> int:
    """The whole blocks in `size_bytes`, in bytes."""
    return size_bytes // BLOCK_BYTES * BLOCK_BYTES
