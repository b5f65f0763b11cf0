"""`nvmefs install-helpers`: the links by which mount(8), umount(8), fsck(8) and mkfs(8) find our commands.

Below: nothing.  Above: cli.py.

/sbin/mount.nvmefs and the others lead to the commands beside the `nvmefs` that makes them. What is there
and not a link to one of ours is never touched.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_OK, EXIT_FAILED = 0, 1
PREFIX = Path("/sbin")  # where mount(8) looks, compiled in
LINKS = {
    "mount.nvmefs": "nvmefs",
    "mount.fuse.nvmefs": "nvmefs",
    "umount.nvmefs": "nvmefs",
    "umount.fuse.nvmefs": "nvmefs",
    "mkfs.nvmefs": "mkfs.nvmefs",
    "fsck.nvmefs": "fsck.nvmefs",
}


class NotInstalled(Exception):
    """One line: what is in the way."""


def main(words: Sequence[str]) -> int:
    """The verb; its exit status."""
    parser = argparse.ArgumentParser(
        prog="nvmefs install-helpers",
        description="Link mount.nvmefs, umount.nvmefs, mkfs.nvmefs, fsck.nvmefs where mount(8) looks.",
    )
    parser.add_argument("--remove", action="store_true", help="take the links away again")
    parser.add_argument(
        "--prefix", type=Path, default=PREFIX, metavar="DIR", help=f"instead of {PREFIX}"
    )
    arguments = parser.parse_args(words)
    work = remove if arguments.remove else install
    try:
        for line in work(arguments.prefix, commands()):
            print(line)
    except NotInstalled as refused:
        print(f"nvmefs install-helpers: {refused}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        hint = "; become root" if isinstance(error, PermissionError) else ""
        print(f"nvmefs install-helpers: {error.filename}: {error.strerror}{hint}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def commands() -> Path:
    """The directory of the commands that belong to this Python."""
    return Path(sys.executable).absolute().parent


def install(prefix: Path, commands: Path) -> list[str]:
    """Make the links; what was done, in words. Raises NotInstalled, before anything is made, OSError."""
    for name, command in LINKS.items():
        if not (commands / command).exists():
            raise NotInstalled(f"{commands / command}: not there; install nvmefs: pip install .")
        _check_ours(prefix / name)
    done = []
    for name, command in LINKS.items():
        path, target = prefix / name, commands / command
        if path.is_symlink() and os.readlink(path) == str(target):
            continue
        fresh = path.with_name(f".{name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(path)
        done.append(f"{path} -> {target}")
    return done


def remove(prefix: Path, commands: Path) -> list[str]:
    """Take the links away, whichever nvmefs made them. Raises NotInstalled, OSError."""
    done = []
    for name in LINKS:
        path = prefix / name
        if path.is_symlink():
            _check_ours(path)
            path.unlink()
            done.append(f"{path} removed")
    return done


def _check_ours(path: Path) -> None:
    """Raises NotInstalled for what somebody else put there."""
    if path.is_symlink():
        if os.path.basename(os.readlink(path)) != LINKS[path.name]:
            raise NotInstalled(f"{path}: leads to {os.readlink(path)}, which is not ours")
    elif path.exists():
        raise NotInstalled(f"{path}: a file that is not ours; move it away first")
