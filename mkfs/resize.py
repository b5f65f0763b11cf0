"""nvmefs resize: grow a filesystem, while it is mounted or not.

Below: nvmefs.grow, which does it; nvmefs.control, which asks a mount's daemon to.  Above: nvmefs.cli.

Exit codes: 0 it has the size asked for, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from driver.address import parse_address
from mkfs import cli, opening
from mkfs.cli import parse_size, show_size
from nvmefs.control import ask
from nvmefs.grow import grow
from nvmefs.layout import BLOCK_BYTES

TOOL = "nvmefs resize"


@dataclass(frozen=True)
class Grown:
    """Sizes of the filesystem in bytes."""

    before_bytes: int
    after_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; its exit status."""

    async def work() -> int:
        return await resize(parse(argv))

    return cli.run(
        TOOL, work, failed=cli.EXIT_FAILED, usage=cli.EXIT_USAGE, cancelled=cli.EXIT_FAILED
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises UsageError; exits after --help and --version."""
    parser = cli.Parser(
        prog=TOOL,
        description="Grow an nvmefs filesystem to the size of its device, or to SIZE.",
        epilog="Of a mounted filesystem give the directory. A filesystem does not shrink.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("target", metavar="DIR|IMAGE_OR_ADDRESS", help="where it is mounted; or what it is on")
    add("size", metavar="SIZE", type=parse_size, nargs="?",
        help="512M, 8G, 1.5TiB; an image file that is smaller and not mounted is extended")  # fmt: skip
    add("--json", action="store_true", help="tell the sizes as JSON")
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser.parse_args(sys.argv[1:] if argv is None else list(argv))


async def resize(given: argparse.Namespace) -> int:
    """All of it. Raises ToolError, DriverError, FsError, OSError."""
    grown = resize_mounted(given.target, given.size)
    if grown is None:
        grown = await resize_offline(given.target, given.size)
    show(given, grown)
    return cli.EXIT_OK


def resize_mounted(target: str, size_bytes: int | None) -> Grown | None:
    """Have the daemon of a mount grow it; None if the target is no directory. Raises FsError."""
    if not os.path.isdir(target):
        return None
    arguments = {} if size_bytes is None else {"size_bytes": size_bytes}
    return Grown(**ask(target, "resize", bound_s=None, **arguments))


async def resize_offline(spec: str, size_bytes: int | None) -> Grown:
    """Grow what nobody has mounted; its image file first."""
    async with opening.filesystem(spec, sound=True) as filesystem:
        if size_bytes is not None:
            extend_image(spec, size_bytes)
        growth = await grow(filesystem, None if size_bytes is None else size_bytes // BLOCK_BYTES)
    return Grown(growth.before * BLOCK_BYTES, growth.after * BLOCK_BYTES)


def extend_image(spec: str, size_bytes: int) -> None:
    """An image file smaller than that gets the size, as a hole. It is locked by us. Raises OSError."""
    address = parse_address(spec)
    if address.kind == "file":
        status = os.stat(address.endpoint)
        if stat.S_ISREG(status.st_mode) and status.st_size < size_bytes:
            os.truncate(address.endpoint, size_bytes)


def show(given: argparse.Namespace, grown: Grown) -> None:
    """What has become of it."""
    if given.json:
        print(json.dumps({"schema_version": 1, "target": given.target, **vars(grown)}, indent=2))
    elif not given.quiet:
        size = f"{show_size(grown.after_bytes)} ({grown.after_bytes // BLOCK_BYTES} blocks)"
        if grown.before_bytes == grown.after_bytes:
            print(f"{given.target}: has {size} already, nothing is to be done")
        else:
            print(f"{given.target}: grown from {show_size(grown.before_bytes)} to {size}")
