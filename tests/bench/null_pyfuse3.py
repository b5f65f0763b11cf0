"""The least a filesystem on pyfuse3 can do: names in a dict, no store.

    python -m tests.bench.null_pyfuse3 DIRECTORY [-o attr_timeout=S,entry_timeout=S]

What a lookup, a getattr or a create costs here is what FUSE, pyfuse3 and trio cost.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import stat
from collections.abc import Sequence

import pyfuse3
import trio

FOREVER_S = 86400.0


class Null(pyfuse3.Operations):
    """One directory of empty files."""

    def __init__(self, entry_timeout_s: float, attr_timeout_s: float) -> None:
        super().__init__()
        self.entry_timeout_s = entry_timeout_s
        self.attr_timeout_s = attr_timeout_s
        self.inodes: dict[bytes, int] = {}

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = (stat.S_IFDIR | 0o755) if inode == 1 else (stat.S_IFREG | 0o644)
        entry.entry_timeout = self.entry_timeout_s
        entry.attr_timeout = self.attr_timeout_s
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = self.inodes.get(name)
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(inode)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self.attributes(inode)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode = self.inodes[name] = len(self.inodes) + 2
        return pyfuse3.FileInfo(fh=inode), self.attributes(inode)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def flush(self, fh: int) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="a filesystem that stores nothing, on pyfuse3")
    parser.add_argument("directory")
    parser.add_argument("-o", dest="options", default="")
    arguments = parser.parse_args()
    options = dict(word.split("=") for word in arguments.options.split(",") if word)
    timeouts = [float(options.get(f"{of}_timeout", FOREVER_S)) for of in ("entry", "attr")]
    pyfuse3.init(Null(*timeouts), arguments.directory, {"fsname=null", "allow_other"})
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
