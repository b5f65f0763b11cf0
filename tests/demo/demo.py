"""What `make demo` and `make demo-stop` run; it needs nothing but the standard library.

python -m tests.demo.demo start          make a filesystem in .demo, mount it, run the programs
python -m tests.demo.demo stop           unmount it, wait for the daemon to end, remove .demo
python -m tests.demo.demo run DIRECTORY  only the programs, to compare with another filesystem
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.demo.programs import HEADINGS, DemoError, Line, Scale, call, columns, run_programs

ROOT = Path(__file__).resolve().parents[2]
IMAGE_SIZE = "1G"
HOST_SPACE_BYTES = 1 << 30
MOUNT_BOUND_S = 60
DAEMON_END_BOUND_S = 60


@dataclass(frozen=True)
class Place:
    """Where the demo lives."""

    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "disk.img"

    @property
    def mountpoint(self) -> Path:
        return self.directory / "mnt"

    @property
    def log(self) -> Path:
        return self.directory / "mount.log"


def tell(line: str) -> None:
    print(line, flush=True)


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there. Asks no stat(): it fails once the daemon is gone."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        escaped = line.split(" ")[4]
        if re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), escaped) == str(mountpoint):
            return True
    return False


def links_of_processes(*names: str) -> Iterator[tuple[int, str]]:
    """(pid, target) of links in /proc: `names` are cwd, exe or fd (every open file).

    As root those of all processes, otherwise those of this user.
    """
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for name in names:
                links = (process / "fd").iterdir() if name == "fd" else [process / name]
                for link in links:
                    yield int(process.name), os.readlink(link)
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # another user's, or it ended while we looked


def holders(image: Path) -> list[int]:
    """Processes that have `image` open."""
    return sorted({pid for pid, link in links_of_processes("fd") if link == str(image)})


def users(mountpoint: Path) -> str:
    """The processes that keep the mount busy: "pid (name), ..."."""
    pids = {
        pid
        for pid, link in links_of_processes("cwd", "exe", "fd")
        if link == str(mountpoint) or link.startswith(f"{mountpoint}/")
    }
    named = []
    for pid in sorted(pids):
        try:
            named.append(f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return ", ".join(named)


def wait_for_end(image: Path) -> None:
    """Wait until nobody has `image` open: the daemon writes back after the unmount."""
    deadline = time.monotonic() + DAEMON_END_BOUND_S
    while pids := holders(image):
        try:
            pidfd = os.pidfd_open(pids[0])
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise DemoError(
                    f"process {pids[0]} still has {image} open after {DAEMON_END_BOUND_S} s; "
                    "nothing was removed"
                )
        finally:
            os.close(pidfd)


def stop(place: Place) -> None:
    """Undo `start`, however far it came; does nothing if there is nothing to undo."""
    if is_mounted(place.mountpoint):
        unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        try:
            call(*unmount, place.mountpoint)
        except DemoError as error:
            if using := users(place.mountpoint):
                raise DemoError(
                    f"{place.mountpoint} is in use by {using}: end or leave, then again"
                ) from error
            raise
        if is_mounted(place.mountpoint):
            raise DemoError(f"{place.mountpoint} is still mounted; nothing was removed")
    wait_for_end(place.image)
    if place.directory.exists():
        shutil.rmtree(place.directory)


def check_machine(place: Place) -> None:
    """Say what stands in the way before anything is made."""
    if not os.path.exists("/dev/fuse"):
        raise DemoError(
            "there is no /dev/fuse: load it with `modprobe fuse`; "
            "a container needs --device /dev/fuse --cap-add SYS_ADMIN"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise DemoError(
            "no permission to open /dev/fuse: run this as root, or `chmod 666 /dev/fuse`"
        )
    free = shutil.disk_usage(place.directory.parent).free
    if free < HOST_SPACE_BYTES:
        raise DemoError(
            f"{free >> 20} MiB free in {place.directory.parent}; the demo needs 1024 MiB"
        )


def installed(command: str) -> Path:
    """The command as installed beside this Python."""
    path = Path(sys.executable).parent / command
    if not path.exists():
        raise DemoError(f"{path} is missing: run `make setup`")
    return path


def mount(place: Place) -> float:
    """Mount the image, the daemon in the background; seconds until it serves.

    Its output goes to a file: a pipe would stay open as long as the daemon does.
    """
    command = [installed("nvmefs"), place.image, place.mountpoint]
    started = time.monotonic()
    with open(place.log, "wb") as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=MOUNT_BOUND_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"nvmefs is not serving after {MOUNT_BOUND_S} s") from error
    seconds = time.monotonic() - started
    if done.returncode != 0 or not is_mounted(place.mountpoint):
        said = place.log.read_text(errors="replace").strip()
        raise DemoError(f"nvmefs: exit status {done.returncode}, not mounted\n{said}".rstrip())
    return seconds


def start(place: Place, scale: Scale) -> None:
    """Make, mount, run; leaves the filesystem mounted."""
    if place.directory.exists():
        tell("stopping the demo that is still there")
        stop(place)
    check_machine(place)
    place.mountpoint.mkdir(parents=True)
    shown = os.path.relpath(place.directory)
    tell(f"mkfs.nvmefs --size {IMAGE_SIZE} -q {shown}/disk.img")
    tell(f"nvmefs {shown}/disk.img {shown}/mnt\n")
    tell(columns(*HEADINGS))
    seconds, _ = call(installed("mkfs.nvmefs"), "--size", IMAGE_SIZE, "-q", place.image)
    tell(str(Line("make the filesystem (mkfs.nvmefs)", seconds, place.image.stat().st_size, 1)))
    tell(str(Line("mount it (nvmefs)", mount(place))))
    run_programs(place.mountpoint, scale, tell)
    space = os.statvfs(place.mountpoint)
    used_mib = (space.f_blocks - space.f_bfree) * space.f_frsize >> 20
    all_mib = space.f_blocks * space.f_frsize >> 20
    tell(f"\nAll results are right. {used_mib:,} MiB of {all_mib:,} MiB are used.\n")
    unmount = "umount" if os.geteuid() == 0 else "fusermount3 -u"
    tell(f"use it:      cd {shown}/mnt")
    tell(f"unmount it:  {unmount} {shown}/mnt      (make demo-stop also removes {shown})")


def run(directory: Path) -> None:
    """The programs alone, in a fresh directory inside `directory` that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=directory) as inside:
        tell(columns(*HEADINGS))
        run_programs(Path(inside), Scale(), tell)


def main() -> int:
    parser = argparse.ArgumentParser(description="the demo of nvmefs", prog="demo")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start", help="make, mount, run programs, leave mounted")
    commands.add_parser("stop", help="unmount and remove")
    only = commands.add_parser("run", help="the programs alone, in any directory")
    only.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    place = Place(ROOT / ".demo")
    try:
        if arguments.command == "start":
            start(place, Scale())
        elif arguments.command == "stop":
            stop(place)
        else:
            run(arguments.directory)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        if is_mounted(place.mountpoint):
            print(
                "demo: left mounted to be looked at; `make demo-stop` removes it", file=sys.stderr
            )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
