"""What can be asked of a mount over its control socket, and what it answers.

Below: filesystem.py, grow.py, tuning.py, counters.py.  Above: mount.py, which hands the verbs to control.py.

    control.serve(mounted, Controls(filesystem, frontend).verbs)
"""

from __future__ import annotations

import errno
import uuid as uuids
from typing import Any

from nvmefs.control import Handler, Value
from nvmefs.counters import snapshot
from nvmefs.errors import FsError
from nvmefs.filesystem import Filesystem
from nvmefs.frontend import Frontend
from nvmefs.grow import grow
from nvmefs.layout import BLOCK_BYTES
from nvmefs.tuning import settings_of, tune

LABEL_BYTES = 64
MOST_BYTES = 2**64 - 1


class Controls:
    """The verbs of one mount. Each takes its arguments by name and raises FsError."""

    def __init__(self, filesystem: Filesystem, frontend: Frontend | None) -> None:
        self.filesystem = filesystem
        self.frontend = frontend
        self.verbs: dict[str, Handler] = {
            "stat": self.stat,
            "trim": self.trim,
            "resize": self.resize,
            "tune": self.tune,
        }

    async def stat(self) -> Value:
        """Every counter."""
        return snapshot(self.filesystem, self.frontend)

    async def trim(self, start: int = 0, length: int = MOST_BYTES, min_length: int = 0) -> Value:
        """Discard what is free, as FITRIM; in bytes."""
        for name, value in (("start", start), ("length", length), ("min_length", min_length)):
            _require_number(name, value)
        done = await self.filesystem.trim(start, length, min_length)
        return {"trimmed_bytes": done}

    async def resize(self, size_bytes: int | None = None) -> Value:
        """Grow, to all of the device if no size is given."""
        wanted = None
        if size_bytes is not None:
            _require_number("size_bytes", size_bytes)
            wanted = size_bytes // BLOCK_BYTES
        growth = await grow(self.filesystem, wanted)
        return {
            "before_bytes": growth.before * BLOCK_BYTES,
            "after_bytes": growth.after * BLOCK_BYTES,
        }

    async def tune(
        self,
        label: str | None = None,
        uuid: str | None = None,
        reserved_blocks: int | None = None,
        on_error: int | None = None,
    ) -> Value:
        """Change what is given; what is so then."""
        fields: dict[str, Any] = {}
        if label is not None:
            fields["label"] = _label(label)
        if uuid is not None:
            fields["uuid"] = _uuid(uuid)
        for name, value in (("reserved_blocks", reserved_blocks), ("on_error", on_error)):
            if value is not None:
                _require_number(name, value)
                fields[name] = value
        if fields:
            await tune(self.filesystem, fields)
        return settings_of(self.filesystem.superblock)


def _require_number(name: str, value: object) -> None:
    if type(value) is not int or not 0 <= value <= MOST_BYTES:
        raise FsError(errno.EINVAL, f"{name} is {value!r}, not a number from 0 to {MOST_BYTES}")


def _label(text: object) -> bytes:
    label = text.encode(errors="surrogateescape") if isinstance(text, str) else b"\0"
    if len(label) > LABEL_BYTES or b"\0" in label:
        raise FsError(errno.EINVAL, f"{text!r} is no label of at most {LABEL_BYTES} bytes")
    return label


def _uuid(text: object) -> bytes:
    try:
        return uuids.UUID(text if isinstance(text, str) else "").bytes
    except ValueError as error:
        raise FsError(errno.EINVAL, f"{text!r} is no uuid") from error
