"""Which daemon serves a mount, with which options: files in /run/nvmefs/mounts, by the device number.

Below: driver.mountinfo.  Above: mount.py, which enters itself; umount.py, which waits for the daemon.

A process id alone would not do: it may be another's by the time it is read. The process' start time
stands beside it. Users who may not write there are not entered: their umount does not wait.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from driver.mountinfo import Mounted
from nvmefs.options import MountOptions

log = logging.getLogger("nvmefs")

DIRECTORY = Path("/run/nvmefs/mounts")


@contextmanager
def entered(mounted: Mounted, options: MountOptions) -> Iterator[None]:
    """This process serves `mounted` as long as the context lasts.

    Not where the registry lies below the mount: who serves a filesystem must not wait for it.
    """
    if DIRECTORY.is_relative_to(mounted.mountpoint):
        log.debug("%s: below the mount; umount will not wait", DIRECTORY)
        yield
        return
    path = DIRECTORY / mounted.device
    start = _start_time(os.getpid())
    entry = {"pid": os.getpid(), "start": start, "options": asdict(options)}
    try:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entry))
    except OSError as error:
        log.debug("%s: %s; umount will not wait", path, error.strerror)
    try:
        yield
    finally:
        if _read(path) == entry:
            path.unlink(missing_ok=True)


def daemon_of(mounted: Mounted) -> int | None:
    """A pidfd of the daemon, for the caller to close; None if it is not known or has ended."""
    entry = _read(DIRECTORY / mounted.device)
    try:
        pid, start = int(entry["pid"]), int(entry["start"])
        descriptor = os.pidfd_open(pid)
    except (KeyError, TypeError, ValueError, OSError):
        return None
    if _start_time(pid) == start:  # looked at after the pidfd holds it fast
        return descriptor
    os.close(descriptor)
    return None


def options_of(mounted: Mounted) -> MountOptions | None:
    """The options that its daemon runs with; None if the daemon is not known or has ended."""
    descriptor = daemon_of(mounted)
    if descriptor is None:
        return None
    os.close(descriptor)
    try:
        return MountOptions(**_read(DIRECTORY / mounted.device)["options"])
    except (KeyError, TypeError):  # another version's
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _start_time(pid: int) -> int:
    """Clock ticks from boot to the start of a process, 0 if there is none: proc_pid_stat(5), 22."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])
