"""umount.nvmefs, what umount(8) calls for our mounts: it returns when the daemon has ended.

Below: mounts.py, registry.py.  Above: cli.py, by the name it is called by.

    umount.nvmefs DIR [-lfrnv] [-N namespace] [-t type]

flush what is dirty -> umount -i -> wait for the daemon to bring its journal home and end.
Exit status as of umount(8): 0 unmounted, 1 wrong usage, 2 unmounted but not all could be written, 32 not
unmounted.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from driver.holders import command_of, descriptors
from driver.mountinfo import Mounted, everywhere, mounts
from nvmefs import registry
from nvmefs.daemon import Refused, enter_mount_namespace
from nvmefs.mounts import mounted_at

EXIT_OK, EXIT_USAGE, EXIT_LOST, EXIT_FAILED = 0, 1, 2, 32
FLUSH_BOUND_S = 600.0
UMOUNT_BOUND_S = 600.0
EXIT_BOUND_S = 600.0
MOST_HOLDERS = 10
PROC = Path("/proc")


def main(words: Sequence[str], program: str = "umount.nvmefs") -> int:
    """The helper; its exit status."""
    parser = argparse.ArgumentParser(prog=program, description="Unmount, and wait for the end.")
    parser.add_argument("mountpoint", metavar="DIR")
    parser.add_argument("-l", "--lazy", action="store_true", help="detach it now, do not wait")
    parser.add_argument("-f", "--force", action="store_true", help="give up what is under way")
    parser.add_argument(
        "-r", "--read-only", action="store_true", help="if busy: read-only at least"
    )
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="leave utab as it is")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is done")
    parser.add_argument("-N", dest="namespace", metavar="ns", help="a mount namespace")
    parser.add_argument("-t", dest="type", metavar="type", help="accepted, without effect")
    try:
        arguments = parser.parse_args(words)
    except SystemExit as ended:
        return EXIT_USAGE if ended.code else EXIT_OK
    try:
        if arguments.namespace:
            enter_mount_namespace(arguments.namespace)
        status, said = unmount(arguments)
    except Refused as refused:
        status, said = EXIT_FAILED, str(refused)
    except subprocess.TimeoutExpired:
        status, said = EXIT_FAILED, f"umount(2) has not come back within {UMOUNT_BOUND_S:g} s"
    except KeyboardInterrupt:
        status, said = EXIT_FAILED, "interrupted"
    if said:
        print(f"{program}: {said}", file=sys.stderr)
    return status


def unmount(arguments: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and what to say."""
    path = _canonical(arguments.mountpoint)
    mounted = mounted_at(path)
    if mounted is None:
        return EXIT_FAILED, f"{path}: not mounted"
    if not mounted.type.startswith("fuse.nvmefs"):
        return EXIT_FAILED, f"{path}: mounted as {mounted.type}, not by nvmefs: umount -i {path}"
    daemon = registry.daemon_of(mounted)
    lost = ""
    if not (arguments.lazy or arguments.force or daemon is None):
        lost = flush(path)
    done = subprocess.run(
        ["umount", "-i", *_flags(arguments), "--", path],
        capture_output=True,
        text=True,
        timeout=UMOUNT_BOUND_S,
        check=False,
    )
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix("umount: ").rstrip(".")
        return EXIT_FAILED, "; ".join([said or f"{path}: not unmounted", *users(path)])
    if arguments.verbose:
        print(f"{path}: unmounted")
    if daemon is not None:
        waiting = not arguments.lazy and not _mounted_elsewhere(mounted)
        if waiting and not _ended(daemon, EXIT_BOUND_S):
            return EXIT_LOST, f"{path}: unmounted; its daemon still writes after {EXIT_BOUND_S:g} s"
        os.close(daemon)
    return (EXIT_LOST, f"{path}: unmounted, but {lost}") if lost else (EXIT_OK, "")


def _flags(arguments: argparse.Namespace) -> Iterator[str]:
    for name, flag in (("lazy", "-l"), ("force", "-f"), ("read_only", "-r"), ("no_mtab", "-n")):
        if getattr(arguments, name):
            yield flag


def _canonical(mountpoint: str) -> str:
    """Without symbolic links, and without asking the mount itself, which may not answer any more."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    return os.path.join(os.path.realpath(parent), name)


# --- flushing and waiting ----------------------------------------------------------------------------


def flush(path: str, bound_s: float = FLUSH_BOUND_S) -> str:
    """Have everything written and durable; what went wrong, or "".

    In a thread: a daemon that does not answer ends with us, and not we with it.
    """
    trouble = [f"its dirty pages were not written within {bound_s:g} s"]

    def work() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
                os.fsync(descriptor)  # the daemon's own: syncfs(2) does not reach it
            finally:
                os.close(descriptor)
        except OSError as error:
            trouble[0] = f"not all could be written: {error.strerror}"
        else:
            trouble[0] = ""

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(bound_s)
    return trouble[0]


def _mounted_elsewhere(mounted: Mounted) -> bool:
    """Whether the same filesystem is still in use: a bind mount, or another mount namespace."""
    return any(each.device == mounted.device for each, _ in everywhere(PROC))


def _ended(pidfd: int, bound_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(bound_s * 1000))


# --- who is in the way -------------------------------------------------------------------------------


def users(path: str) -> list[str]:
    """What keeps a mount busy, in words: mounts on it, processes in it. As far as /proc lets us see."""
    found = [
        f"{each.mountpoint} is mounted on it: umount {each.mountpoint}"
        for each in mounts()
        if each.mountpoint.startswith(path + "/")
    ]
    processes = list(_processes_in(path))
    names = processes[:MOST_HOLDERS]
    if len(processes) > len(names):
        names.append(f"and {len(processes) - len(names)} more")
    return found + ([f"in use by {', '.join(names)}"] if names else [])


def _processes_in(path: str) -> Iterator[str]:
    found = {pid for pid, place in _places() if place == path or place.startswith(path + "/")}
    return (f"{command_of(pid)} (pid {pid})" for pid in sorted(found - {os.getpid()}))


def _places() -> Iterator[tuple[int, str]]:
    """Where processes are: their directories, open files, what they run and map."""
    links = list(descriptors())
    for process in PROC.glob("[0-9]*"):
        pid = int(process.name)
        links += [(pid, process / name) for name in ("cwd", "root", "exe")]
        try:
            maps = (process / "maps").read_text(errors="surrogateescape").splitlines()
        except OSError:  # it has ended, or is not ours to look into
            continue
        for line in maps:
            if "/" in line:
                yield pid, line[line.find("/") :]
    for pid, link in links:
        try:
            yield pid, os.readlink(link)
        except OSError:
            continue
