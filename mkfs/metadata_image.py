"""nvmefs image: copy the metadata of a filesystem into a sparse file, for who looks for a fault elsewhere.

Below: check/run.py, whose reads are what is copied; obscure/.  Above: nvmefs.cli.

What a check reads is all that it can judge by: the copy has these blocks, and holes in place of the data of
files, so a check finds in it what it finds in the original. Short files stand in the tree, and are copied too.
With --obscure nothing is copied as it stands: obscure/ writes a filesystem of the same shape, without names and
contents.
Exit codes: 0 copied, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from mkfs import cli, opening
from mkfs.check.load import Unusable
from mkfs.check.run import check
from mkfs.cli import ToolError, show_size
from mkfs.obscure.image import obscure
from nvmefs.device import Device
from nvmefs.layout import BLOCK_BYTES

TOOL = "nvmefs image"
SECRET_BYTES = 32


class Copied(Device):
    """A device of which each block that is read is written into a file, in its place."""

    def __init__(self, device: Device, descriptor: int) -> None:
        super().__init__(
            device.namespace, device.description, fua=device.fua, controller=device.controller
        )
        self.descriptor = descriptor
        self.copied: set[int] = set()

    async def read(
        self, block: int, count: int = 1, skip: int = 0, length: int | None = None
    ) -> bytes:
        data = await super().read(block, count)
        for index in range(count):
            part = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            if any(part) and block + index not in self.copied:
                os.pwrite(self.descriptor, part, (block + index) * BLOCK_BYTES)
                self.copied.add(block + index)
        return data[skip : len(data) if length is None else skip + length]


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; its exit status."""

    async def work() -> int:
        return await image(parse(argv))

    return cli.run(
        TOOL, work, failed=cli.EXIT_FAILED, usage=cli.EXIT_USAGE, cancelled=cli.EXIT_FAILED
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises UsageError; exits after --help and --version."""
    parser = cli.Parser(
        prog=TOOL,
        description="Copy the metadata of an nvmefs filesystem into a sparse file.",
        epilog="Without --obscure names, attributes, symbolic links and short files are in the copy; "
        "other data never is.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("device", metavar="IMAGE_OR_ADDRESS", help="what it is on; not mounted")
    add("out", metavar="OUT", type=Path, help="a file that is not there yet")
    add(
        "--obscure",
        action="store_true",
        help="put others of the same length in the place of names, zeroes in that of values and files",
    )
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser.parse_args(sys.argv[1:] if argv is None else list(argv))


async def image(given: argparse.Namespace) -> int:
    """All of it. Raises ToolError, DriverError, FsError, OSError."""
    async with opening.device(given.device, read_only=True) as device:
        descriptor = create(given.out)
        try:
            if given.obscure:
                os.ftruncate(descriptor, device.block_count * BLOCK_BYTES)
                copied = await obscure(device, descriptor, secrets.token_bytes(SECRET_BYTES))
            else:
                copied = await copy(device, descriptor)
            os.fsync(descriptor)
        except BaseException as error:
            os.unlink(given.out)
            if isinstance(error, Unusable):
                raise ToolError(f"{given.device}: {error}") from error
            raise
        finally:
            os.close(descriptor)
    if not given.quiet:
        print(f"{given.out}: {copied} blocks, {show_size(copied * BLOCK_BYTES)} of metadata")
    return cli.EXIT_OK


def create(path: Path) -> int:
    """A new file that only its owner can read. Raises ToolError, OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ToolError(f"{path} exists: it is not overwritten, name another") from None


async def copy(device: Device, descriptor: int) -> int:
    """Copy what a check reads, and the partition table; how many blocks. Raises Unusable, FsError, OSError."""
    os.ftruncate(descriptor, device.block_count * BLOCK_BYTES)
    reading = Copied(device, descriptor)
    await reading.read(0)
    await check(reading)
    return len(reading.copied)


if __name__ == "__main__":
    sys.exit(main())
