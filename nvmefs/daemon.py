"""The process of a mount: into the background, its log, its signals, its standing with the kernel.

Below: nothing of the filesystem.  Above: cli.py, mount.py.

    exit_code = in_background(run)           forks before anything is opened; the parent returns
    run(ready)                               in the child; it calls ready() when the mount serves

The parent waits until the child says that it serves, or why it does not: then the command can tell its user
with the right exit code. Threads, the device and trio exist in the child only: none survives a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger("nvmefs")

SYSLOG = "/dev/log"
KERNEL_LOG = "/dev/kmsg"
READY = b"+"
CLONE_NEWNS = 0x20000
PR_SET_IO_FLUSHER = 57  # <linux/prctl.h>, Linux 5.6
OOM_SCORE_ADJ = -900

LOG_FORMAT = "%(asctime)s nvmefs[%(process)d] %(levelname)s %(name)s: %(message)s"


class Refused(Exception):
    """The mount cannot be had. The message is one line for the user; `exit_code` as in mount(8)."""

    def __init__(self, message: str, exit_code: int = 32) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def in_background(run: Callable[[Callable[[], None]], int]) -> int:
    """Run `run(ready)` in a child that outlives this process; what the command is to exit with.

    0 once the child has called ready(). Raises Refused with the child's reason if it ends before.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os._exit(_child(run, write_end))
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read()
    if said.startswith(READY):
        return 0
    _, status = os.waitpid(child, 0)
    if said:
        code, _, message = said.decode(errors="replace").partition(" ")
        raise Refused(message, int(code))
    raise Refused(f"the daemon ended without a word ({_how_it_ended(status)})")


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def _child(run: Callable[[Callable[[], None]], int], write_end: int) -> int:
    """The daemon's life; its exit status. No exception may get out: above stands the parent's stack."""
    os.setsid()
    os.chdir("/")

    def ready() -> None:
        _let_go_of_the_terminal()
        os.write(write_end, READY)
        os.close(write_end)

    try:
        return run(ready)
    except Refused as refused:
        _say(write_end, f"{refused.exit_code} {refused}")
        return refused.exit_code
    except BaseException as error:
        log.critical("the daemon ends by a fault of nvmefs", exc_info=True)
        _say(write_end, f"32 {type(error).__name__}: {error}")
        return 70
    finally:
        logging.shutdown()


def _say(write_end: int, text: str) -> None:
    with contextlib.suppress(OSError):  # after ready() nobody listens; the log has it
        os.write(write_end, text.replace("\n", " ").encode(errors="replace"))


def _let_go_of_the_terminal() -> None:
    """Who reads the command's output through a pipe must not wait for the daemon's end."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


# --- logging ---------------------------------------------------------------------------------------


class ReopenableFile(logging.handlers.WatchedFileHandler):
    """A log file that SIGHUP, or its renaming by logrotate, opens anew."""


class KernelLog(logging.Handler):
    """Critical lines in the kernel's log, where no syslog runs: a filesystem must not fall silent."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with open(KERNEL_LOG, "wb", buffering=0) as kmsg:
                kmsg.write(f"<2>nvmefs: {record.getMessage()}\n".encode())
        except OSError:
            self.handleError(record)


def start_logging(*, path: str | None, foreground: bool, debug: bool) -> None:
    """Send the log where it belongs; call it in the process that will serve.

    Until the mount serves warnings also go to stderr. Raises Refused if the file cannot be opened.
    """
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.raiseExceptions = False
    # pyfuse3 tells of each task it starts: that is no news even when debugging.
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("nvmefs: %(message)s"))
    if not foreground or path is not None:
        terminal.setLevel(logging.WARNING)
    root.addHandler(terminal)
    durable = _durable_handler(path, foreground)
    if durable is not None:
        root.addHandler(durable)


def _durable_handler(path: str | None, foreground: bool) -> logging.Handler | None:
    if path is not None:
        try:
            handler: logging.Handler = ReopenableFile(path)
        except OSError as error:
            raise Refused(f"{path}: the log cannot be opened: {error.strerror}") from error
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        return handler
    if foreground:
        return None
    if os.path.exists(SYSLOG):
        with contextlib.suppress(OSError):  # a socket that nobody serves
            handler = logging.handlers.SysLogHandler(SYSLOG)
            handler.ident = f"nvmefs[{os.getpid()}]: "
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            return handler
    if os.access(KERNEL_LOG, os.W_OK):
        return KernelLog(logging.CRITICAL)
    return None


def reopen_log() -> None:
    """SIGHUP: whoever rotates logs has moved the file away."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, ReopenableFile):
            with handler.lock or contextlib.nullcontext():
                handler.reopenIfNeeded()
    log.info("log reopened")


@contextlib.contextmanager
def stack_dumps_on_signal() -> Iterator[None]:
    """SIGUSR1 writes the stacks of all threads to the log file, or to stderr in the foreground."""
    stream = next(
        (h.stream for h in logging.getLogger().handlers if isinstance(h, ReopenableFile)), None
    )
    faulthandler.register(signal.SIGUSR1, file=stream or sys.stderr, all_threads=True)
    try:
        yield
    finally:
        faulthandler.unregister(signal.SIGUSR1)


# --- standing with the kernel ----------------------------------------------------------------------


def stand_firm() -> None:
    """As root: do not be killed, and do not wait for ourselves, when memory is short. Best effort.

    Who writes back dirty pages must not be made to write back dirty pages (PR_SET_IO_FLUSHER).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        log.debug("PR_SET_IO_FLUSHER: %s", os.strerror(ctypes.get_errno()))
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError as error:
        log.debug("oom_score_adj: %s", error.strerror)


def enter_mount_namespace(path: str) -> None:
    """The mount namespace at `path` (/proc/PID/ns/mnt), as `mount -N` asks for. Raises Refused.

    Only for a process with one thread; what is imported later comes from over there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{path}: no mount namespace: {error.strerror}") from error
    try:
        if libc.setns(descriptor, CLONE_NEWNS):
            reason = os.strerror(ctypes.get_errno())
            raise Refused(f"{path}: the mount namespace cannot be entered: {reason}")
    finally:
        os.close(descriptor)


def tell_systemd(state: str) -> None:
    """sd_notify(3): READY=1, STOPPING=1. Nothing where systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(state.encode(), address)
    except OSError as error:
        log.warning("NOTIFY_SOCKET: %s", error.strerror)
