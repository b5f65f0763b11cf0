"""The life of a mount: look whether it can be, open everything in order, serve, close in reverse order.

Below: operations.py, filesystem.py, device.py, daemon.py.  Above: cli.py.

    check(spec, mountpoint)                           what can be known before anything is opened
    await serve(spec, mountpoint, options, ready)     returns when unmounted and closed

    device -> filesystem -> mount(2), FUSE_INIT -> ready() -> requests ... umount(2) or a signal
           -> journal committed and brought home -> device closed

A signal unmounts as umount(8) does, so that the kernel hands over its dirty pages while we still answer;
only if the mount is busy it is detached, and what its users still write is lost to them.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pyfuse3
import trio

import driver
from driver import trace
from nvmefs import control, daemon, grow, registry, rings
from nvmefs.controls import Controls
from nvmefs.daemon import Refused
from nvmefs.device import Device, open_device
from nvmefs.errors import FsError, MountRefused
from nvmefs.filesystem import Filesystem, Options
from nvmefs.frontend import Frontend, opened
from nvmefs.mounts import UNMOUNT_BOUND_S, has_umount_helper, mounted_at, name_helper, unmount
from nvmefs.operations import Operations
from nvmefs.options import MountOptions
from nvmefs.place import Unavailable
from nvmefs.shortcut import Shortcut
from nvmefs.upcalls import Upcalls

log = logging.getLogger("nvmefs")

FUSE_DEVICE = "/dev/fuse"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INIT_BOUND_S = 20.0
READ_AHEAD_KB = 4096
MAX_RATIO = 50

# How many requests may be under way at once; each holds a buffer of 1 MiB while it does.
MIN_TASKS = 4
MAX_TASKS = 64


# --- before anything is opened ----------------------------------------------------------------------


def check(mountpoint: str) -> str:
    """The mountpoint without symbolic links, after all that can be checked early. Raises Refused.

    A mount there whose daemon is gone is detached, with a warning.
    """
    path = os.path.realpath(mountpoint)
    _check_mountpoint(path)
    _check_fuse()
    return path


def _check_mountpoint(path: str) -> None:
    try:
        found = os.stat(path)
        os.statvfs(path)  # stat(2) is answered from memory even when the daemon is gone
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            _detach_stale(path)
            _check_mountpoint(path)
            return
        if error.errno == errno.ENOENT:
            raise Refused(f"{path}: the mountpoint does not exist; make it: mkdir {path}") from None
        raise Refused(f"{path}: the mountpoint cannot be used: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise Refused(f"{path}: the mountpoint is not a directory")


def _detach_stale(path: str) -> None:
    """Clear a mount of ours whose daemon died. Another program's is left to its user."""
    stale = mounted_at(path)
    if stale is None or not stale.type.startswith("fuse.nvmefs"):
        what = stale.type if stale else "unknown type"
        raise Refused(
            f"{path}: a mount of {what} there has lost its daemon; detach it: umount -l {path}"
        )
    try:
        unmount(path, lazily=True)
    except OSError as error:
        raise Refused(
            f"{path}: a stale mount of {stale.source} cannot be detached: {error.strerror}"
        ) from None
    log.warning("%s: a mount of %s had lost its daemon and was detached", path, stale.source)


def _check_fuse() -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hints = {
            errno.ENOENT: "load the module: modprobe fuse",
            errno.ENODEV: "load the module: modprobe fuse",
            errno.EACCES: f"become root, or chmod 666 {FUSE_DEVICE}",
            errno.EPERM: "allow the device in this container: --device /dev/fuse",
        }
        hint = hints.get(error.errno or 0, "see `dmesg`")
        raise Refused(f"{FUSE_DEVICE}: {error.strerror}; {hint}") from None


# --- serving -----------------------------------------------------------------------------------------


async def serve(
    spec: str, mountpoint: str, options: MountOptions, ready: Callable[[], None]
) -> None:
    """Open `spec`, mount it at `mountpoint`, serve until it is unmounted, close. Raises Refused.

    `ready` is called when requests are answered. Refused after that means that closing failed.
    """
    if options.trace:
        trace.enable()
    try:
        async with open_device(spec, fua=options.fua, **_driver_options(options)) as device:
            await _serve_device(device, mountpoint, options, ready)
    except (driver.DriverError, MountRefused, FsError) as error:
        raise Refused(_about(spec, error)) from error
    log.info("%s: closed", spec)


def _about(spec: str, error: Exception) -> str:
    """The one line, with what it is about in front."""
    text = " ".join(str(error).split())
    return text if text.startswith(spec) else f"{spec}: {text}"


def _driver_options(options: MountOptions) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "read_only": options.read_only,
        "noiommu": options.noiommu,
        "poll": options.poll,
    }
    if options.lba_bytes is not None:
        chosen["lba_bytes"] = options.lba_bytes
    if options.poll_ns is not None:
        chosen["poll_ns"] = options.poll_ns
    if options.command_timeout_s is not None:
        chosen["command_timeout_s"] = options.command_timeout_s or None
    return chosen


async def _serve_device(
    device: Device, mountpoint: str, options: MountOptions, ready: Callable[[], None]
) -> None:
    filesystem = await Filesystem.open(
        device,
        Options(
            read_only=options.read_only,
            commit_s=options.commit_s,
            cache_mb=options.cache_mb,
            discard=options.discard,
            atime=options.atime,
            on_error=options.on_error,
        ),
    )
    try:
        await _Session(filesystem, mountpoint, options, ready).run()
    finally:
        with trio.CancelScope(shield=True):
            await filesystem.close()


STATVFS = "import os, sys; os.statvfs(sys.argv[1])"


class _Session:
    """pyfuse3's session: there is one in a process."""

    def __init__(
        self,
        filesystem: Filesystem,
        mountpoint: str,
        options: MountOptions,
        ready: Callable[[], None],
    ) -> None:
        self.filesystem = filesystem
        self.mountpoint = mountpoint
        self.options = options
        self.ready = ready
        self.initialised = trio.Event()
        self.unmounted = False
        self.refused: Refused | None = None
        self.entry = ExitStack()

    async def run(self) -> None:
        """Mount, answer requests until the mount is gone, clean up."""
        operations = Operations(
            self.filesystem,
            writeback_cache=self.options.writeback_cache,
            attribute_timeout_s=self.options.attr_timeout_s,
            entry_timeout_s=self.options.entry_timeout_s,
            on_init=self.initialised.set,
        )
        source = self.options.fsname or self.filesystem.device.description
        words = fuse_options(source, self.options)
        async with self._frontend(operations, words) as frontend:
            self._initialise(operations, frontend, words)
            try:
                with self.entry, trio.open_signal_receiver(*SIGNALS) as received:
                    await self._answer(operations, frontend, received)
            finally:
                pyfuse3.close(unmount=frontend is None)
        if self.refused is not None:
            raise self.refused
        log.info("%s: unmounted from %s", source, self.mountpoint)

    @asynccontextmanager
    async def _frontend(
        self, operations: Operations, words: set[str]
    ) -> AsyncIterator[Frontend | None]:
        """The C front end, mounted; or None where pyfuse3 is to do it all."""
        async with AsyncExitStack() as stack:
            frontend = None
            if self.options.frontend in ("c", "uring") or (
                self.options.frontend == "auto" and not self.options.trace  # which shows every hop
            ):
                try:
                    if self.options.frontend == "uring" and (reason := rings.missing()):
                        raise Unavailable(reason)
                    frontend = await stack.enter_async_context(
                        opened(
                            self.filesystem,
                            self.mountpoint,
                            words,
                            Upcalls(operations),
                            Shortcut(operations),
                            self.options.threads,
                            rings=self.options.frontend == "uring",
                        )
                    )
                except Unavailable as error:
                    if self.options.frontend != "auto":
                        raise Refused(
                            f"{self.mountpoint}: frontend={self.options.frontend}: {error}"
                        ) from error
                    log.info("frontend=python: %s", error)
            yield frontend

    def _initialise(
        self, operations: Operations, frontend: Frontend | None, words: set[str]
    ) -> None:
        try:
            pyfuse3.init(operations, frontend.session_path if frontend else self.mountpoint, words)
        except RuntimeError as error:
            raise Refused(
                f"{self.mountpoint}: cannot be mounted: {error} (the lines above say why)"
            ) from error
        if frontend is not None:
            frontend.session_taken()
            if not self.options.writeback_cache:  # each write sets times, as only Python can
                frontend.plane.disable()

    async def _answer(
        self,
        operations: Operations,
        frontend: Frontend | None,
        received: AsyncIterator[int],
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.filesystem.run)
            nursery.start_soon(operations.run)
            nursery.start_soon(self._watch_signals, received)
            nursery.start_soon(self._announce, nursery, frontend)
            if frontend is not None:
                nursery.start_soon(frontend.run, pyfuse3.terminate)
            await pyfuse3.main(MIN_TASKS, MAX_TASKS)
            self.unmounted = True
            nursery.cancel_scope.cancel()

    async def _announce(self, nursery: trio.Nursery, frontend: Frontend | None) -> None:
        """Once the kernel has begun to talk: the last settings, then the command may return."""
        with trio.move_on_after(INIT_BOUND_S) as bound:
            await self.initialised.wait()
            # The kernel answers this when it has taken in our answer, and with it what tune() changes. Asked by
            # a process of its own: a thread of ours that waits for us could not be killed, and so could not we.
            await trio.run_process([sys.executable, "-ISc", STATVFS, self.mountpoint], check=False)
            if frontend is not None and (reason := await frontend.rings_missing()):
                self.refused = Refused(f"{self.mountpoint}: frontend=uring: {reason}")
                pyfuse3.terminate()
                return
        if bound.cancelled_caught:
            self.refused = Refused(f"{self.mountpoint}: no FUSE_INIT within {INIT_BOUND_S:g} s")
            pyfuse3.terminate()
            return
        tune(self.mountpoint, self.options)
        await self._enter(nursery, frontend)
        log.info("%s: mounted at %s", self.filesystem.device.description, self.mountpoint)
        self.ready()

    async def _enter(self, nursery: trio.Nursery, frontend: Frontend | None) -> None:
        """Tell umount(8) to leave the unmounting to umount.py, and that who serves this mount; be there for
        who asks.
        """
        mounted = mounted_at(self.mountpoint)
        if mounted is None:
            return
        controls = Controls(self.filesystem, frontend)
        await nursery.start(control.serve, mounted, controls.verbs)
        grow.watch(self.filesystem)
        self.entry.enter_context(registry.entered(mounted, self.options))
        if has_umount_helper():
            await trio.to_thread.run_sync(name_helper, mounted, abandon_on_cancel=True)

    async def _watch_signals(self, received: AsyncIterator[int]) -> None:
        async for number in received:
            if number == signal.SIGHUP:
                daemon.reopen_log()
                continue
            log.info("%s: unmounting", signal.Signals(number).name)
            await self._leave()

    async def _leave(self) -> None:
        """Unmount while requests are still answered; a busy mount is detached instead."""
        try:
            with trio.fail_after(UNMOUNT_BOUND_S):
                await trio.to_thread.run_sync(self._unmount, abandon_on_cancel=True)
        except trio.TooSlowError:
            log.error("%s: not unmounted after %g s", self.mountpoint, UNMOUNT_BOUND_S)
        if not self.unmounted:
            pyfuse3.terminate()

    def _unmount(self) -> None:
        """In a thread: the kernel asks us for much before this returns."""
        try:
            unmount(self.mountpoint)
        except OSError as error:
            log.warning("%s: %s; detaching it", self.mountpoint, error.strerror)
            with suppress(OSError):  # best effort: what programs have open is ending anyway
                descriptor = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    ctypes.CDLL(None).syncfs(descriptor)
                finally:
                    os.close(descriptor)
            with suppress(OSError):  # pyfuse3.close() detaches as well
                unmount(self.mountpoint, lazily=True)


def fuse_options(source: str, options: MountOptions) -> set[str]:
    """What libfuse and the kernel are told."""
    root = os.geteuid() == 0
    forwarded = {"suid": "suid", "dev": "dev"} if root else {}
    forwarded |= options.forwarded
    words = {
        "default_permissions",
        f"fsname={_escaped(source)}",
        f"subtype={_escaped(options.subtype)}",
        "ro" if options.read_only else "rw",
        *forwarded.values(),
    }
    if options.allow_other or (options.allow_other is None and root):
        words.add("allow_other")
    if options.atime == "noatime":
        words.add("noatime")
    return words


def _escaped(text: str) -> str:
    """libfuse splits options at commas; pyfuse3 wants ASCII."""
    text = text.encode(errors="surrogateescape").decode("ascii", "backslashreplace")
    return text.replace("\\", "\\\\").replace(",", "\\,")


def tune(mountpoint: str, options: MountOptions) -> None:
    """More read-ahead and dirty pages than the kernel grants FUSE of itself; root only, best effort."""
    mounted = mounted_at(mountpoint)
    if mounted is None:
        log.debug("%s: not in mountinfo, not tuned", mountpoint)
        return
    wanted = {
        "read_ahead_kb": (options.read_ahead_kb, READ_AHEAD_KB),
        "max_ratio": (options.max_ratio, MAX_RATIO),
    }
    for name, (asked, default) in wanted.items():
        value = default if asked is None else asked
        path = Path("/sys/class/bdi") / mounted.device / name
        try:
            path.write_text(f"{value}\n")
        except OSError as error:
            level = logging.DEBUG if asked is None else logging.WARNING
            log.log(level, "%s: cannot be set to %d: %s", path, value, error.strerror)
