"""mkfs.nvmefs: make a filesystem on an image or a controller.

Below: mkfs_options, geometry (what goes where), probe (what is there), image (files), write.  Above: nothing.

parse → open → probe → calculate → show → self-test → write.
Exit codes: 0 made, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial

from mkfs import cli, lba_format, probe
from mkfs.cli import ToolError
from mkfs.geometry import Identity, Plan, Wishes, calculate, make_identity
from mkfs.image import Image
from mkfs.mkfs_options import TOOL, Options, parse
from mkfs.populate import open_source
from mkfs.populate.fill import Filled, RootWishes, fill
from mkfs.populate.source import Source
from mkfs.selftest import self_test
from mkfs.undo import Recorded, UndoFile
from mkfs.write import RootDirectory, write_filesystem
from nvmefs.device import Device, open_device
from nvmefs.layout import BLOCK_BYTES, State

LEFT_OUT_SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `mkfs.nvmefs`."""

    async def work() -> int:
        return await make(parse(argv))

    return cli.run(
        TOOL, work, failed=cli.EXIT_FAILED, usage=cli.EXIT_USAGE, cancelled=cli.EXIT_FAILED
    )


async def make(options: Options) -> int:
    """All of mkfs, in order. Raises ToolError, UsageError, DriverError, FsError, OSError."""
    identity = make_identity(options.uuid, options.seed)
    image = Image.at(options.spec, options.size)
    if image is not None and image.is_new and options.dry_run:
        plan = lay_out(options, identity, image.size_bytes // BLOCK_BYTES, None)
        show(options, plan, [])
        return cli.EXIT_OK
    if image is not None and image.grows and not options.dry_run:
        # A file that is refused must not have grown.
        async with opened(options, read_only=True) as device:
            refuse(options, await probe.signatures(device, str(image.path)))
    with image.sized() if image is not None and not options.dry_run else nullcontext():
        async with opened(options, read_only=options.dry_run) as device:
            await make_on(options, identity, image, device)
    return cli.EXIT_OK


async def make_on(
    options: Options, identity: Identity, image: Image | None, device: Device
) -> None:
    """The part of mkfs that needs the open device."""
    path = str(image.path) if image is not None else None
    fresh = image is not None and image.is_new
    found = [] if fresh else await probe.signatures(device, path)
    if not options.dry_run:
        refuse(options, found)
    blocks = image.size_bytes // BLOCK_BYTES if image is not None else device.block_count
    plan = lay_out(options, identity, blocks, device)
    if image is None and (remark := await lba_format.advice(device)):
        note(options, f"{options.spec}: {remark}")
    with open_source(options.source, path) if options.source else nullcontext() as source:
        show(options, plan, found)
        self_test()
        if options.dry_run:
            return
        with recorded(options, device, fresh=fresh) as target:
            await write(options, plan, target, source, fresh=fresh)


async def write(
    options: Options, plan: Plan, device: Device, source: Source | None, *, fresh: bool
) -> None:
    """The part of mkfs that changes the device."""
    uid, gid = options.root_owner or (os.getuid(), os.getgid())
    mode = 0o755 if options.root_mode is None else options.root_mode

    async def populate(state: State) -> int:
        assert source is not None
        born = plan.identity.created_s, plan.identity.created_ns
        wishes = RootWishes(options.root_owner, options.root_mode)
        latest = born if plan.identity.date_is_fixed else None
        filled = await fill(
            device, plan.superblock, state, source, born, latest=latest, root=wishes
        )
        tell(options, filled)
        return filled.next_seq

    await write_filesystem(
        device,
        plan,
        RootDirectory(uid, gid, mode),
        fresh=fresh,
        discard=options.discard,
        note=partial(note, options),
        populate=populate if source is not None else None,
    )
    if options.verbose:
        note(options, f"{options.spec}: filesystem made")


@contextmanager
def recorded(options: Options, device: Device, *, fresh: bool) -> Iterator[Device]:
    """The device, whose old contents go into the undo file if there is to be one. Raises ToolError."""
    if options.undo_file is None:
        yield device
        return
    if fresh:
        raise ToolError(f"{options.spec} is new: there is nothing for {options.undo_file} to keep")
    undo_command = f"fsck.nvmefs --undo --undo-file {options.undo_file} {options.spec}"
    with UndoFile.create(options.undo_file, device.block_count) as undo:
        try:
            yield Recorded(device, undo)
        finally:
            note(options, f"to put back what was there: {undo_command}")


def tell(options: Options, filled: Filled) -> None:
    """What has come out of the source, and what has not."""
    for what in list(filled.left_out)[:LEFT_OUT_SHOWN]:
        note(options, f"not kept: {what}")
    if len(filled.left_out) > LEFT_OUT_SHOWN:
        note(options, f"not kept: {len(filled.left_out) - LEFT_OUT_SHOWN} more")
    if not options.quiet and not options.json:
        counts = ", ".join(f"{number} {what}" for what, number in filled.counts.items())
        print(f"  {'contents':12} {counts or 'nothing'}", flush=True)


@asynccontextmanager
async def opened(options: Options, *, read_only: bool) -> AsyncIterator[Device]:
    """The device, as the command line wants it. Raises DriverError."""
    async with open_device(options.spec, read_only=read_only, lba_bytes=options.lba_size) as device:
        yield device


def lay_out(options: Options, identity: Identity, blocks: int, device: Device | None) -> Plan:
    """The filesystem that the command line describes, on `blocks` blocks. Raises ToolError."""
    alignment_blocks = device.alignment_blocks if device is not None else 1
    if options.alignment is not None:
        alignment_blocks = options.alignment // BLOCK_BYTES
    wishes = Wishes(
        label=options.label,
        journal_bytes=options.journal_size,
        lba_bytes=device.lba_bytes if device is not None else options.lba_size or 512,
        alignment_blocks=alignment_blocks,
        creator=f"nvmefs {cli.version()}".encode(),
        reserve=options.reserve,
        on_error=options.errors,
        features=options.features,
    )
    return calculate(blocks, wishes, identity)


def refuse(options: Options, found: list[str]) -> None:
    """Raise ToolError if something is on the device, unless forced or told to go on."""
    if not found or options.force:
        return
    what = f"{options.spec} holds {'; '.join(found)}"
    if cli.ask(f"{TOOL}: {what}. Overwrite all of it?"):
        return
    raise ToolError(f"{what}: not overwritten; use --force (-f) if nothing of it is needed")


def show(options: Options, plan: Plan, found: list[str]) -> None:
    """The layout, on standard output."""
    if options.json:
        print(json.dumps({"device": options.spec, "found": found, **plan.as_json()}, indent=2))
    elif not options.quiet:
        title = (
            f"{options.spec}: a dry run, nothing is written" if options.dry_run else options.spec
        )
        print(title, *(f"  {line}" for line in plan.lines()), sep="\n", flush=True)
        if found and options.dry_run:
            print(f"  {'in the way':12} {'; '.join(found)} (--force would be needed)")


def note(options: Options, message: str) -> None:
    """A remark that is no error."""
    if not options.quiet:
        cli.complain(TOOL, message)


if __name__ == "__main__":
    sys.exit(main())
