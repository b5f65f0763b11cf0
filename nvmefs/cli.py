"""The `nvmefs` command: nvmefs SPEC DIR [-o options] [-f]. It also takes what mount(8) gives its helpers.

A first word that is a verb goes elsewhere: those of the driver (list, id-ctrl, perf, ...) to driver/tools,
those about a mount (stat, trim) to mounted.py, `install-helpers` to helpers.py; and the offline tools
(resize, ...), of which nothing is known here, are found as entry points of the installed package. A file of
such a name is mounted as ./list. Called as mount.nvmefs there are no verbs: a SPEC comes first, always; and
called as umount.nvmefs it is umount.py.

Below: options.py, daemon.py, mount.py, mounted.py, umount.py, helpers.py, driver/tools.
Above: users, mount(8), systemd.

Exit status as of mount(8): 0 mounted, 1 wrong usage, 32 not mounted; the reason is one line on stderr.
In the foreground it is the daemon's: 0 after a clean unmount, 32 if closing failed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import metadata
from typing import NoReturn

from driver.address import parse_address
from driver.errors import AddressError, DriverError
from driver.tools.verbs import VERBS
from nvmefs import daemon
from nvmefs.daemon import Refused
from nvmefs.options import MountOptions, OptionError, describe, parse

EXIT_USAGE = 1
EXIT_FAILED = 32
INSTALL = "install-helpers"
MOUNTED = frozenset(("stat", "trim"))
OFFLINE = "nvmefs.verbs"  # the group of entry points


class Parser(argparse.ArgumentParser):
    """argparse ends with 2 on wrong usage; mount(8) helpers end with 1."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="nvmefs",
        description="Mount an nvmefs filesystem. It is made by mkfs.nvmefs and unmounted by umount.",
        epilog=f"options for -o:\n{describe()}\n\n"
        f"of a mount: nvmefs {'|'.join(sorted(MOUNTED))} DIR\n"
        f"of a filesystem: nvmefs {'|'.join(offline_verbs())} SPEC\n"
        f"of a device: nvmefs {'|'.join([*sorted(VERBS), INSTALL])} --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spec", metavar="SPEC", help="an image file (or file:PATH), a PCI address")
    parser.add_argument("mountpoint", metavar="DIR", help="the directory to mount at")
    parser.add_argument(
        "-o", dest="options", metavar="opt,...", action="append", default=[], help="see below"
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="do not become a daemon")
    parser.add_argument(
        "--systemd", action="store_true", help="in the foreground, for a unit of Type=notify"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what the daemon does")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="ignore unknown options")
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="accepted, without effect")
    parser.add_argument("-N", dest="namespace", metavar="ns", help="mount in that mount namespace")
    parser.add_argument("-t", dest="type", metavar="type", help="nvmefs or fuse.nvmefs")
    parser.add_argument("-V", "--version", action="version", version=f"nvmefs {metadata_version()}")
    return parser


def offline_verbs() -> list[str]:
    """The verbs of the installed offline tools."""
    return sorted(entry.name for entry in metadata.entry_points(group=OFFLINE))


def metadata_version() -> str:
    """The installed version; 'unknown' when run from a tree that is not installed."""
    try:
        return metadata.version("nvmefs")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = os.path.basename(sys.argv[0])
    if name.startswith("umount."):
        from nvmefs.umount import main as umount

        return umount(words, name)
    helper = name.startswith("mount.")
    verb = verb_of(words) if not helper else None
    if verb is not None:
        return verb()
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.type not in (None, "nvmefs", "fuse.nvmefs", "fuse"):
        parser.error(f"type '{arguments.type}' is not mounted by nvmefs")
    if arguments.verbose:
        arguments.options.append("debug")
    try:
        options = parse(arguments.options, sloppy=arguments.sloppy)
    except OptionError as error:
        parser.error(str(error))
    if helper and arguments.foreground:  # mount(8) says -f for "do everything but mount"
        return 0
    ready = partial(daemon.tell_systemd, "READY=1") if arguments.systemd else None
    foreground = arguments.foreground or arguments.systemd
    try:
        if arguments.namespace:
            enter(arguments.namespace)
        if options.remount:
            from nvmefs.remount import remount

            remount(arguments.mountpoint, arguments.options, sloppy=arguments.sloppy)
            return 0
        return mount(arguments.spec, arguments.mountpoint, options, foreground, ready)
    except Refused as refused:
        print(f"nvmefs: {refused}", file=sys.stderr)
        return refused.exit_code


def verb_of(words: Sequence[str]) -> Callable[[], int] | None:
    """What the first word asks for, if it is a verb."""
    if not words or not re.fullmatch("[a-z][a-z-]*", words[0]):
        return None
    word, rest = words[0], words[1:]
    if word in VERBS:
        from driver.tools.cli import main as tools

        return partial(tools, words)
    if word in MOUNTED:
        from nvmefs.mounted import main as mounted

        return partial(mounted, words)
    if word == INSTALL:
        from nvmefs.helpers import main as install

        return partial(install, rest)
    for entry in metadata.entry_points(group=OFFLINE, name=word):
        return partial(entry.load(), rest)
    return None


def enter(namespace: str) -> None:
    """-N: mount there. What we need is loaded before: over there it may not be. Raises Refused."""
    import nvmefs.mount  # noqa: F401

    daemon.enter_mount_namespace(namespace)


def mount(
    spec: str,
    mountpoint: str,
    options: MountOptions,
    foreground: bool,
    ready: Callable[[], None] | None = None,
) -> int:
    """Mount; returns when the mount serves, or in the foreground when it has ended. Raises Refused.

    In the foreground `ready` is called when it serves.
    """
    spec = absolute(spec)
    mountpoint = os.path.abspath(mountpoint)
    if options.log is not None:
        options = replace(options, log=os.path.abspath(options.log))

    def run(ready: Callable[[], None]) -> int:
        return run_daemon(spec, mountpoint, options, foreground, ready)

    return run(ready or (lambda: None)) if foreground else daemon.in_background(run)


def absolute(spec: str) -> str:
    """A path that holds after the daemon has changed to the root directory; other addresses as they are."""
    prefix, path = ("file:", spec[5:]) if spec.startswith("file:") else ("", spec)
    if prefix or os.path.exists(path):
        return prefix + os.path.abspath(path)
    return spec


def run_daemon(
    spec: str,
    mountpoint: str,
    options: MountOptions,
    foreground: bool,
    ready: Callable[[], None],
) -> int:
    """What the daemon does; its exit status. The imports are late: pyfuse3 and trio live here alone."""
    import trio

    from nvmefs.mount import check, serve

    daemon.start_logging(path=options.log, foreground=foreground, debug=options.debug)
    path = check(mountpoint)
    daemon.stand_firm()
    with daemon.stack_dumps_on_signal(), taken(spec) if options.take else nullcontext():
        trio.run(serve, spec, path, options, ready)
    return 0


@contextmanager
def taken(spec: str) -> Iterator[None]:
    """-o take: on vfio-pci as long as it is mounted. Raises Refused."""
    from driver.pci.borrow import borrowed

    try:
        address = parse_address(spec)
        if address.kind != "pci":
            raise AddressError(f"{spec}: -o take is for a PCI address, as 0000:01:00.0")
        with borrowed(address.endpoint):
            yield
    except DriverError as error:
        raise Refused(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
