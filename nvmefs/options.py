"""The -o options of a mount: one table, a row for each.

Below: layout.py.  Above: cli.py, which reads them; mount.py, which acts by them; docs, made from the table.

    options = parse(["rw,noatime", "commit=10"])     MountOptions; raises OptionError
    for row in TABLE: ...                            what is accepted, and what becomes of it

mount(8) passes on what stands in fstab, also what concerns others (nofail, _netdev, x-systemd.*): such
options are accepted and ignored. What would be ignored although somebody relies on it is refused with a hint.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from nvmefs.layout import ERROR_POLICIES, ErrorPolicy


class OptionError(ValueError):
    """An option that is unknown, refused, or has a value that makes no sense. One line."""


class Treatment(enum.Enum):
    """What becomes of an option."""

    IMPLEMENT = "implemented here"
    FORWARD = "handed to the kernel"
    IGNORE = "accepted and ignored"
    REFUSE = "refused"


FOR_YEARS_S = 10 * 365 * 86400.0


@dataclass(frozen=True)
class MountOptions:
    """What was asked for. None where the answer depends on the machine or the user (see mount.py).

    `forwarded` are kernel options by the name of their group: suid -> nosuid replaces suid.
    """

    read_only: bool = False
    atime: str = "relatime"
    discard: bool = False
    commit_s: float = 5.0
    cache_mb: int = 64
    on_error: ErrorPolicy | None = None
    writeback_cache: bool = True
    allow_other: bool | None = None
    fsname: str | None = None
    subtype: str = "nvmefs"
    log: str | None = None
    trace: bool = False
    debug: bool = False
    attr_timeout_s: float = FOR_YEARS_S
    entry_timeout_s: float = FOR_YEARS_S
    fua: bool = True
    lba_bytes: int | None = None
    take: bool = False
    poll: str = "adaptive"
    poll_ns: int | None = None
    command_timeout_s: float | None = None
    noiommu: bool = False
    frontend: str = "auto"
    threads: int | None = None
    read_ahead_kb: int | None = None
    max_ratio: int | None = None
    remount: bool = False
    forwarded: dict[str, str] = field(default_factory=dict)


Parser = Callable[[str], Any]


@dataclass(frozen=True)
class Row:
    """One option. `sets` is (field of MountOptions, value), or only the field where a value follows '='.

    `note` says what it does, or for REFUSE what to do instead.
    """

    name: str
    treatment: Treatment
    note: str
    field: str = ""
    value: Any = None
    parse: Parser | None = None


def _number(low: float, high: float, kind: Callable[[str], float] = int) -> Parser:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            raise OptionError(f"'{text}' is not a number") from None
        if not low <= number <= high:
            raise OptionError(f"{text} is not between {low:g} and {high:g}")
        return number

    return parse


def _choice(choices: dict[str, Any]) -> Parser:
    def parse(text: str) -> Any:
        if text not in choices:
            raise OptionError(f"'{text}' is not one of {', '.join(choices)}")
        return choices[text]

    return parse


def _text(text: str) -> str:
    if not text:
        raise OptionError("a value is missing")
    return text


def _implement(
    name: str, note: str, field: str, value: Any = None, parse: Parser | None = None
) -> Row:
    return Row(name, Treatment.IMPLEMENT, note, field, value, parse)


def _forward(group: str, *names: str) -> list[Row]:
    return [Row(name, Treatment.FORWARD, "as in mount(8)", "forwarded", group) for name in names]


def _ignore(note: str, *names: str) -> list[Row]:
    return [Row(name, Treatment.IGNORE, note) for name in names]


TABLE: tuple[Row, ...] = (
    _implement("ro", "no change of the filesystem, not even a journal replay", "read_only", True),
    _implement("rw", "read and write (default)", "read_only", False),
    _implement("noatime", "reading never changes the access time", "atime", "noatime"),
    _implement(
        "relatime",
        "access time at most once a day, or when older than the last change (default)",
        "atime",
        "relatime",
    ),
    _implement(
        "strictatime", "access time at each read that reaches the daemon", "atime", "strictatime"
    ),
    _implement(
        "atime",
        "the access-time policy; alone: as relatime",
        "atime",
        "relatime",
        _choice({"relatime": "relatime", "noatime": "noatime", "strictatime": "strictatime"}),
    ),
    _implement("discard", "tell the drive which blocks were freed, soon after", "discard", True),
    _implement("nodiscard", "do not (default)", "discard", False),
    _implement(
        "commit",
        "SECONDS between a change and its commit, without fsync (5)",
        "commit_s",
        parse=_number(0.01, 3600, float),
    ),
    _implement(
        "errors",
        "continue or remount-ro when a block is not what it must be (as mkfs or tune has set it)",
        "on_error",
        parse=_choice(ERROR_POLICIES),
    ),
    _implement(
        "cache_mb",
        "MiB of metadata kept in memory (64); as much again may wait for the journal",
        "cache_mb",
        parse=_number(2, 65536),
    ),
    _implement("writeback_cache", "the kernel collects writes (default)", "writeback_cache", True),
    _implement(
        "nowriteback_cache", "each write(2) reaches the daemon at once", "writeback_cache", False
    ),
    _implement(
        "allow_other", "other users may use the mount (default for root)", "allow_other", True
    ),
    _implement(
        "noallow_other",
        "only the user who mounts may use it (default for other users)",
        "allow_other",
        False,
    ),
    _implement("fsname", "the source that df and findmnt show (SPEC)", "fsname", parse=_text),
    _implement("subtype", "the type shown as fuse.SUBTYPE (nvmefs)", "subtype", parse=_text),
    _implement("log", "the daemon's log FILE, instead of syslog", "log", parse=_text),
    _implement("trace", "log each hop of each request", "trace", True),
    _implement("debug", "log what the daemon does", "debug", True),
    _implement(
        "attr_timeout",
        "SECONDS the kernel may keep attributes",
        "attr_timeout_s",
        parse=_number(0, FOR_YEARS_S, float),
    ),
    _implement(
        "entry_timeout",
        "SECONDS the kernel may keep names",
        "entry_timeout_s",
        parse=_number(0, FOR_YEARS_S, float),
    ),
    _implement(
        "fua",
        "auto: Force Unit Access for commits; off: a Flush instead",
        "fua",
        parse=_choice({"auto": True, "off": False}),
    ),
    _implement(
        "lba_size",
        "bytes of an LBA of the embedded controller: 512 or 4096",
        "lba_bytes",
        parse=_choice({"512": 512, "4096": 4096}),
    ),
    _implement(
        "take",
        "take the controller from the kernel's nvme driver if it is free, and give it back at unmount",
        "take",
        True,
    ),
    _implement(
        "noiommu",
        "a PCI address on a machine without an IOMMU: the device may reach all memory (unsafe)",
        "noiommu",
        True,
    ),
    _implement(
        "poll",
        "adaptive: spin as long as the drive has been taking, then sleep (default); always: a core of its "
        "own while anything is awaited; never: sleep at once",
        "poll",
        parse=_choice({"adaptive": "adaptive", "always": "always", "never": "never"}),
    ),
    _implement(
        "poll_ns",
        "longest adaptive spin for one completion, nanoseconds (60000)",
        "poll_ns",
        parse=_number(0, 1_000_000_000),
    ),
    _implement(
        "command_timeout",
        "SECONDS after which a command is taken for lost, 0: never (30; for EBS volumes never)",
        "command_timeout_s",
        parse=_number(0, 1e9, float),
    ),
    _implement(
        "frontend",
        "who takes requests: c (threads that serve data without Python, from /dev/fuse), uring (the same, "
        "from an io_uring for each CPU; Linux 6.14, with Y in /sys/module/fuse/parameters/enable_uring), "
        "python (pyfuse3 alone), or auto: c where it can (default)",
        "frontend",
        parse=_choice({"auto": "auto", "c": "c", "uring": "uring", "python": "python"}),
    ),
    _implement(
        "threads",
        "threads in C, each with a queue pair; fewer if the drive grants fewer (half as many as cores, 4 at "
        "most; with frontend=uring one for each CPU, 16 at most)",
        "threads",
        parse=_number(1, 8),
    ),
    _implement("interrupt", "as poll=never", "poll", "never"),
    _implement(
        "read_ahead_kb",
        "the kernel's read-ahead for this mount (root only)",
        "read_ahead_kb",
        parse=_number(0, 1 << 20),
    ),
    _implement(
        "max_ratio",
        "percentage of the kernel's dirty pages this mount may use (root only)",
        "max_ratio",
        parse=_number(1, 100),
    ),
    _implement(
        "remount",
        "change what is mounted: ro, rw, and what the kernel keeps (suid, dev, exec, sync)",
        "remount",
        True,
    ),
    *_forward("suid", "suid", "nosuid"),
    *_forward("dev", "dev", "nodev"),
    *_forward("exec", "exec", "noexec"),
    *_forward("sync", "sync", "async"),
    *_forward("dirsync", "dirsync"),
    *_ignore("always on: the kernel checks permissions", "default_permissions"),
    *_ignore("what mount(8) assumes", "defaults"),
    *_ignore(
        "for mount(8) and systemd",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "comment",
    ),
    *_ignore("times are written back with the journal in any case", "lazytime", "nolazytime"),
    *_ignore("directories follow the same policy as files", "diratime", "nodiratime"),
    *_ignore("the kernel's default since 2.6.30", "nostrictatime", "norelatime"),
    *_ignore("as every filesystem of FUSE 3 does", "nonempty"),
    *_ignore("always on: the kernel keeps pages", "kernel_cache"),
    *_ignore("nothing here knows them", "silent", "loud", "iversion", "noiversion", "nomand"),
    *_ignore(
        "what the kernel shows of a mount, given back by mount(8)",
        "helper",
        "uhelper",
        "user_id",
        "group_id",
        "rootmode",
        "max_read",
        "blksize",
    ),
    Row("bind", Treatment.REFUSE, "use `mount --bind` on the mounted directory"),
    Row("loop", Treatment.REFUSE, "name the image file itself: it needs no loop device"),
    Row("allow_root", Treatment.REFUSE, "use allow_other"),
    Row(
        "auto_unmount",
        Treatment.REFUSE,
        "the daemon unmounts when it ends; a dead mount is cleared by the next mount",
    ),
    Row(
        "direct_io",
        Treatment.REFUSE,
        "open files with O_DIRECT; nowriteback_cache turns collecting off",
    ),
    Row("mand", Treatment.REFUSE, "Linux 5.15 and later have no mandatory locks"),
    Row(
        "nosymfollow",
        Treatment.REFUSE,
        "mount without it, then: mount -i -o remount,bind,nosymfollow DIR",
    ),
    Row("clone_fd", Treatment.REFUSE, "each thread has a descriptor of its own: see threads"),
)

BY_NAME = {row.name: row for row in TABLE}


def parse(
    given: Iterable[str], *, sloppy: bool = False, base: MountOptions | None = None
) -> MountOptions:
    """The options in comma-separated lists, over those of `base`; the last of contradicting ones counts.

    With `sloppy` (mount -s) unknown options are ignored. Raises OptionError naming the option.
    """
    options = base or MountOptions()
    for text in given:
        for word in text.split(","):
            if word:
                options = _apply(options, word, sloppy)
    return options


def _apply(options: MountOptions, word: str, sloppy: bool) -> MountOptions:
    name, equals, value = word.partition("=")
    row = BY_NAME.get(name)
    if row is None:
        if name.startswith(("x-", "X-")) or sloppy:
            return options
        raise OptionError(f"unknown mount option '{name}'")
    if row.treatment is Treatment.REFUSE:
        raise OptionError(f"mount option '{name}' is not possible: {row.note}")
    if row.treatment is Treatment.IGNORE:
        return options
    if row.treatment is Treatment.FORWARD:
        if equals:
            raise OptionError(f"mount option '{name}' takes no value")
        return replace(options, forwarded={**options.forwarded, row.value: name})
    return replace(options, **{row.field: _value(row, equals, value)})


def _value(row: Row, equals: str, text: str) -> Any:
    if equals and row.parse is None:
        raise OptionError(f"mount option '{row.name}' takes no value")
    if not equals and row.value is None:
        raise OptionError(f"mount option '{row.name}' needs a value: {row.name}=...")
    if not equals or row.parse is None:
        return row.value
    try:
        return row.parse(text)
    except OptionError as error:
        raise OptionError(f"mount option '{row.name}': {error}") from None


def describe() -> str:
    """The table as lines of text, for --help."""
    lines = []
    for row in TABLE:
        if row.treatment is Treatment.IMPLEMENT:
            value = "=..." if row.parse and row.value is None else ""
            lines.append(f"  {row.name + value:<20} {row.note}")
    return "\n".join(lines)
