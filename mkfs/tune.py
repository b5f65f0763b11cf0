"""nvmefs tune: change the label, the UUID, the reserve and the errors policy of a filesystem, mounted or not.

Below: settings.py (words and values), nvmefs.tuning, nvmefs.control.  Above: nvmefs.cli.

Exit codes: 0 changed, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid as uuids
from collections.abc import Sequence
from typing import Any

from mkfs import cli, opening, settings
from mkfs.check.findings import Findings
from mkfs.check.load import Unusable, load
from mkfs.cli import ToolError, UsageError, show_size
from mkfs.mkfs_options import Features
from nvmefs.control import ask
from nvmefs.layout import BLOCK_BYTES
from nvmefs.tuning import settings_of, tune

TOOL = "nvmefs tune"
Fields = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; its exit status."""

    async def work() -> int:
        return await change(parse(argv))

    return cli.run(
        TOOL, work, failed=cli.EXIT_FAILED, usage=cli.EXIT_USAGE, cancelled=cli.EXIT_FAILED
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Raises UsageError; exits after --help and --version."""
    parser = cli.Parser(
        prog=TOOL,
        description="Change the settings of an nvmefs filesystem.",
        epilog="Of a mounted filesystem give the directory. Without a change, -l is meant.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("target", metavar="DIR|IMAGE_OR_ADDRESS", help="where it is mounted; or what it is on")
    add("-L", "--label", type=settings.parse_label, help="name of at most 64 bytes; '' for none")
    add("-U", "--uuid", type=parse_uuid, help="random, time, clear, or the UUID itself")
    add("-m", "--reserve", type=settings.parse_reserve, metavar="PERCENT_OR_SIZE",
        help="space for root alone")  # fmt: skip
    add("-e", "--errors", type=settings.parse_errors, metavar="POLICY",
        help="what mounts do on corruption: continue or remount-ro")  # fmt: skip
    add("-O", "--features", action=Features, default=settings.NO_CHANGES, metavar="NAME,^NAME",
        help="switch features on and off; 'list' shows them")  # fmt: skip
    add("-l", "--list", action="store_true", help="show the settings, after the change")
    add("--json", action="store_true", help="show them as JSON")
    add("-V", "--version", action="version", version=f"{TOOL} {cli.version()}")
    return parser.parse_args(sys.argv[1:] if argv is None else list(argv))


def parse_uuid(text: str) -> bytes:
    """As tune2fs(8) has it: a UUID, or how to come by one."""
    if text == "random":
        return uuids.uuid4().bytes
    if text == "time":
        return uuids.uuid1().bytes
    if text == "clear":
        return bytes(16)
    return settings.parse_uuid(text)


async def change(given: argparse.Namespace) -> int:
    """All of it. Raises ToolError, UsageError, DriverError, FsError, OSError."""
    refuse_features(given.features)
    wanted = {
        "label": given.label,
        "uuid": given.uuid,
        "reserved_blocks": given.reserve,
        "on_error": given.errors,
    }
    fields = {name: value for name, value in wanted.items() if value is not None}
    now = change_mounted(given.target, fields)
    if now is None:
        now = await (change_offline(given.target, fields) if fields else look(given.target))
    if given.list or given.json or not fields:
        show(given, now)
    return cli.EXIT_OK


def refuse_features(changes: settings.FeatureChanges) -> None:
    """Features say how what is there is laid out. Raises UsageError."""
    names = sorted(changes.on | changes.off)
    if names:
        raise UsageError(
            f"feature {', '.join(names)} can be chosen by mkfs.nvmefs only: it decides where things lie"
        )


def change_mounted(target: str, fields: Fields) -> Fields | None:
    """Have a mount's daemon do it; None if the target is no directory. Raises FsError."""
    if not os.path.isdir(target):
        return None
    if not fields:
        return ask(target, "tune")
    words = dict(fields)
    if "label" in fields:
        words["label"] = fields["label"].decode()
    if "uuid" in fields:
        words["uuid"] = str(uuids.UUID(bytes=fields["uuid"]))
    if "reserved_blocks" in fields:
        words["reserved_blocks"] = reserved_blocks(fields, ask(target, "tune")["block_count"])
    return ask(target, "tune", **words)


async def change_offline(spec: str, fields: Fields) -> Fields:
    """Change what nobody has mounted."""
    async with opening.filesystem(spec) as filesystem:
        superblock = filesystem.superblock
        if "reserved_blocks" in fields:
            fields["reserved_blocks"] = reserved_blocks(fields, superblock.block_count)
        await tune(filesystem, fields)
        return settings_of(superblock)


def reserved_blocks(fields: Fields, block_count: int) -> int:
    """What the reserve comes to on this filesystem. Raises ToolError if nothing would be left."""
    reserve: settings.Reserve = fields["reserved_blocks"]
    blocks = reserve.blocks(block_count)
    most = block_count * settings.MAX_RESERVE_PERCENT // 100
    if blocks > most:
        raise ToolError(
            f"a reserve of {show_size(blocks * BLOCK_BYTES)} is not possible here, the most is "
            f"{show_size(most * BLOCK_BYTES)}"
        )
    return blocks


async def look(spec: str) -> Fields:
    """The settings, without a write."""
    async with opening.device(spec, read_only=True) as device:
        try:
            return settings_of((await load(device, Findings())).superblock)
        except Unusable as error:
            raise ToolError(f"{spec}: {error}") from error


def show(given: argparse.Namespace, now: Fields) -> None:
    """The settings, on standard output."""
    errors, reserved = settings.policy_name(now["on_error"]), now["reserved_blocks"]
    if given.json:
        values = {
            "schema_version": 1,
            "target": given.target,
            "label": now["label"],
            "uuid": now["uuid"],
            "reserved_blocks": reserved,
            "errors": errors,
            "block_count": now["block_count"],
        }
        print(json.dumps(values, indent=2))
        return
    print(f"label    {cli.printable(now['label']) or 'none'}")
    print(f"uuid     {now['uuid']}")
    print(f"reserve  {show_size(reserved * BLOCK_BYTES)}, {reserved} blocks")
    print(f"errors   {errors}")
    print(f"size     {show_size(now['block_count'] * BLOCK_BYTES)}, {now['block_count']} blocks")
