"""Opening what a tool works on: a device that is not in use, and the filesystem on it.

Below: nvmefs.device, nvmefs.filesystem.  Above: the tools beside mkfs and fsck.

    async with device(spec, read_only=True) as opened: ...
    async with filesystem(spec) as opened: ...        to change it: the journal's records are home
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from driver.address import parse_address
from mkfs.cli import ToolError
from nvmefs.device import Device, open_device
from nvmefs.errors import MountRefused
from nvmefs.filesystem import Filesystem, Options
from nvmefs.layout import StateFlag


def require_there(spec: str) -> None:
    """Raise OSError if an image file is missing: a driver would tell how to make one, which is no help here."""
    address = parse_address(spec)
    if address.kind == "file":
        os.stat(address.endpoint)


@asynccontextmanager
async def device(spec: str, *, read_only: bool) -> AsyncIterator[Device]:
    """The device, locked: DriverError where it is mounted, or another tool works on it. Raises OSError."""
    require_there(spec)
    async with open_device(spec, read_only=read_only) as opened:
        yield opened


@asynccontextmanager
async def filesystem(spec: str, *, sound: bool = False) -> AsyncIterator[Filesystem]:
    """The filesystem, to be changed through its journal, and closed in order at the end.

    `sound`: refuse one that has known errors. Raises ToolError, DriverError, FsError, OSError.
    """
    async with device(spec, read_only=False) as opened:
        try:
            changing = await Filesystem.open(opened, Options(), mounting=False)
        except MountRefused as error:
            text = str(error).removeprefix(f"{spec}: ")
            raise ToolError(f"{spec}: {text}") from error
        if sound and changing.state.flags & StateFlag.ERRORS:
            await changing.close()
            raise ToolError(
                f"{spec}: it has known errors: repair it first, with fsck.nvmefs {spec}"
            )
        yield changing
        await changing.close()
