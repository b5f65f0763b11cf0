"""Makes a golden image that is not there yet: python -m tests.golden.make NAME"""

from __future__ import annotations

import functools
import io
import json
import lzma
import os
import sys
from pathlib import Path

import trio

from mkfs.settings import Reserve
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import GROUP_BLOCKS, JOURNAL_START, ErrorPolicy
from tests.golden.contents import CONTENTS, UNCLEAN, tree
from tests.reader import Reader
from tests.support.images import fresh, move_journal_head
from tests.support.ram import RamNamespace

HERE = Path(__file__).parent
BLOCK = 4096
ZERO = bytes(BLOCK)
BLOCKS = 33_000  # two groups, so that the copies of superblock and bitmaps have their places
LONG_BLOCKS = 65_000
LONG_JOURNAL_BLOCKS = 32_300  # 65 of them in group 1


class Image(io.RawIOBase):
    """The blocks of a namespace as a file, to be read block by block."""

    def __init__(self, namespace: RamNamespace) -> None:
        super().__init__()
        self.namespace = namespace
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = self.namespace.block_count * BLOCK
        self._at = offset if whence == os.SEEK_SET else end + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        number, self._at = self._at // BLOCK, self._at + BLOCK
        if number >= self.namespace.block_count:
            return b""
        return bytes(self.namespace.blocks.get(number, ZERO))


def pack(namespace: RamNamespace) -> bytes:
    """The whole image, compressed."""
    compressor = lzma.LZMACompressor()
    blocks = (namespace.blocks.get(number, ZERO) for number in range(namespace.block_count))
    return b"".join([*(compressor.compress(block) for block in blocks), compressor.flush()])


@functools.cache
def _unpacked(packed: Path) -> RamNamespace:
    blocks: dict[int, bytes] = {}
    count = 0
    with lzma.open(packed) as image:
        while data := image.read(BLOCK):
            if data != ZERO:
                blocks[count] = data
            count += 1
    return RamNamespace(count, blocks)


def load(name: str) -> RamNamespace:
    """A copy of a golden image, in memory."""
    return _unpacked(HERE / f"{name}.img.xz").copy()


async def make(name: str) -> RamNamespace:
    """An image with the content of that name; some were not unmounted."""
    if name == "long-journal":
        namespace = await fresh(
            LONG_BLOCKS, journal_blocks=LONG_JOURNAL_BLOCKS, on_error=ErrorPolicy.REMOUNT_RO,
            reserve=Reserve(size_bytes=1 << 20),
        )  # fmt: skip
        move_journal_head(namespace, GROUP_BLOCKS - JOURNAL_START - 10)
    else:
        namespace = await fresh(BLOCKS)
    filesystem = await Filesystem.open(namespace.device(), Options())
    await CONTENTS[name](filesystem)
    if name not in UNCLEAN:
        await filesystem.close()
    return namespace


async def told(namespace: RamNamespace) -> dict[str, dict[str, object]]:
    """The tree as the filesystem tells it, mounted read-only: nothing is replayed onto the image."""
    filesystem = await Filesystem.open(namespace.device(), Options(read_only=True))
    return await tree(filesystem)


def main(name: str) -> int:
    """Exit status 0; 1 if there is such an image already, or the two readers disagree."""
    packed, described = HERE / f"{name}.img.xz", HERE / f"{name}.json.xz"
    if packed.exists():
        print(f"{packed} exists: golden images are never made again", file=sys.stderr)
        return 1
    namespace = trio.run(make, name)
    expected = trio.run(told, namespace)
    if Reader(Image(namespace)).tree() != expected:
        print("the filesystem and tests/reader.py do not tell the same", file=sys.stderr)
        return 1
    packed.write_bytes(pack(namespace))
    described.write_bytes(lzma.compress(json.dumps(expected, indent=1).encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
