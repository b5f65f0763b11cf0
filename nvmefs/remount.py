"""mount -o remount: read-only and back, and the flags that the kernel keeps (nosuid, noexec, ...).

Below: registry.py, which knows with which options the daemon runs.  Above: cli.py.

What the daemon decides cannot change while it runs; asking for it is refused. mount(8) repeats the options
that are in force: those change nothing and are no reason to refuse.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import asdict

from driver.mountinfo import Mounted
from nvmefs import registry
from nvmefs.daemon import Refused
from nvmefs.mounts import mounted_at
from nvmefs.options import MountOptions, parse
from nvmefs.umount import flush

MS_REMOUNT = 32
FLAGS = {  # <linux/mount.h>
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
# Not the daemon's, or not to be compared: mount(8) takes what it names from what the kernel shows.
OTHERS = {"remount", "read_only", "forwarded", "debug", "fsname", "subtype"}


def remount(mountpoint: str, given: Sequence[str], *, sloppy: bool = False) -> None:
    """Change the mount at `mountpoint` as `given` says. Raises Refused, OptionError."""
    path = os.path.realpath(mountpoint)
    mounted = mounted_at(path)
    if mounted is None or not mounted.type.startswith("fuse.nvmefs"):
        raise Refused(f"{path}: no filesystem of nvmefs is mounted there")
    running = registry.options_of(mounted)
    if running is None:
        raise Refused(f"{path}: nobody knows its options; unmount, then mount with the new ones")
    wanted = parse(given, sloppy=sloppy, base=running)
    _refuse_changes(path, running, wanted)
    if running.read_only and not wanted.read_only:
        raise Refused(
            f"{path}: its drive was opened read-only; to write, unmount, then mount with rw"
        )
    if wanted.read_only:
        _flush(path)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_REMOUNT | _flags(mounted, wanted)
    if libc.mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), None):
        reason = os.strerror(ctypes.get_errno())
        raise Refused(f"{path}: cannot be remounted: {reason}")
    if wanted.read_only:
        _flush(path)  # what the kernel has handed over meanwhile is not committed yet


def _refuse_changes(path: str, running: MountOptions, wanted: MountOptions) -> None:
    """Raises Refused for what is the daemon's, and would change."""
    before, after = asdict(running), asdict(wanted)
    for name, value in after.items():
        if name in OTHERS or value == before[name] or before[name] is None:
            continue
        if name == "atime" and value == "relatime":  # which the kernel shows of every mount
            continue
        raise Refused(
            f"{path}: {name} is {before[name]} and cannot change while mounted; "
            "unmount, then mount with the new options"
        )


def _flags(mounted: Mounted, wanted: MountOptions) -> int:
    """Those it has, changed by those that are named."""
    words = set(mounted.options) - {"rw", "ro"}
    words |= {"ro"} if wanted.read_only else set()
    for group, word in wanted.forwarded.items():
        words -= {group, f"no{group}"}
        words.add(word)
    return sum(flag for word, flag in FLAGS.items() if word in words)


def _flush(path: str) -> None:
    trouble = flush(path)
    if trouble:
        raise Refused(f"{path}: not remounted: {trouble}")
