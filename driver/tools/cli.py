"""The verbs of `nvmefs` that need no filesystem: arguments, opening, printing.

Exit status: 0 done, 1 the device or a command failed (one line on stderr says why), 2 wrong usage.
JSON has `schema_version` beside the values; it grows when a value changes its meaning or goes away.

Below: show.py, perf.py. Above: nvmefs/cli.py, which hands over a first argument that is a verb.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from ..address import Address, parse_address
from ..controller import Controller, open_controller
from ..errors import DriverError
from ..options import DriverOptions
from ..pci.binding import InUse
from ..transports import Transport
from . import devices, manage, perf, serve, show
from .verbs import VERBS

SCHEMA_VERSION = 1
EXIT_FAILED, EXIT_USAGE = 1, 2
_NULL_QUEUES = 2

Verb = Callable[[Controller, "int | None"], Awaitable[show.Values]]
_QUERIES: dict[str, tuple[Verb, str]] = {
    "id-ctrl": (show.id_ctrl, "what the controller says about itself"),
    "id-ns": (show.id_ns, "what it says about a namespace"),
    "smart-log": (show.smart_log, "temperature, wear, counters"),
    "error-log": (show.error_log, "the errors it remembers, newest first"),
    "fw-log": (show.fw_log, "its firmware, slot by slot"),
    "effects-log": (show.effects_log, "the commands it has, and what they change"),
    "ebs-stats": (show.ebs_stats, "the statistics of an EBS volume"),
    "reset": (show.reset, "reset the controller; data stays"),
}
assert {
    "list",
    "bind",
    "unbind",
    "doctor",
    "controller",
    "perf",
    "get-feature",
    *_QUERIES,
    *manage.VERBS,
} == VERBS


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([kKmM]?)", text)
    if match is None or not int(match.group(1)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: 512, 4k, 1M")
    return int(match.group(1)) << {"": 0, "k": 10, "m": 20}[match.group(2).lower()]


def _bounded(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return convert


def _feature(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = 0
    if not 1 <= number <= 255:
        raise argparse.ArgumentTypeError(f"{text!r} is not a feature: 1 to 255, or 0x01 to 0xff")
    return number


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="nvmefs")
    verbs = parser.add_subparsers(dest="verb", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "-o", dest="output", choices=("text", "json"), default="text", help="output format"
    )
    listing = verbs.add_parser(
        "list", parents=[shared], help="controllers of this machine, or namespaces of one"
    )
    listing.add_argument("spec", metavar="SPEC", nargs="?", help="a controller; all on PCI if none")
    opening = argparse.ArgumentParser(add_help=False)
    opening.add_argument(
        "--noiommu", action="store_true", help="without an IOMMU: the device may reach all memory"
    )
    opening.add_argument(
        "--command-timeout",
        type=_bounded(0, 1e9, float),
        metavar="S",
        help="seconds after which a command is taken for lost, 0: never (30; for EBS volumes never)",
    )
    for name, (_, words) in _QUERIES.items():
        verb = verbs.add_parser(name, parents=[shared, opening], help=words, description=words)
        verb.add_argument("spec", metavar="SPEC", help="an image file, a PCI address")
        if name == "id-ns":
            verb.add_argument("-n", "--nsid", type=int, help="the one that SPEC names if not given")
    words = "the current value of a feature"
    asking = verbs.add_parser("get-feature", parents=[shared, opening], help=words)
    asking.add_argument("spec", metavar="SPEC", help="an image file, a PCI address")
    asking.add_argument(
        "-f", "--feature", type=_feature, required=True, metavar="ID", help="1 to 255, or 0x..."
    )
    asking.add_argument("-n", "--nsid", type=int, help="for those that are a namespace's")
    manage.add_verbs(verbs, shared, opening)
    devices.add_verbs(verbs, shared)
    serving = verbs.add_parser("controller", help=serve.DESCRIPTION, description=serve.DESCRIPTION)
    serve.add_arguments(serving, _size, _bounded(1, 65536, int))
    measuring = "measure the driver and the device"
    _add_perf(verbs.add_parser("perf", parents=[shared, opening], help=measuring))
    return parser


def _add_perf(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("spec", metavar="SPEC", help="as elsewhere, or null:SIZE for no medium")
    verb.add_argument("-n", "--nsid", type=int, help="namespace id")
    verb.add_argument("--rw", choices=perf.PATTERNS, default="randread", help="access pattern")
    verb.add_argument("--bs", type=_size, default=4096, metavar="SIZE", help="bytes per command")
    verb.add_argument(
        "--qd", type=_bounded(1, 1024, int), default=1, metavar="N", help="commands in flight"
    )
    verb.add_argument(
        "--time", type=_bounded(0.1, 86400, float), default=5.0, metavar="S", help="seconds"
    )
    wait = verb.add_mutually_exclusive_group()
    wait.add_argument("--poll", action="store_true", help="never sleep: a core of its own")
    wait.add_argument("--interrupt", action="store_true", help="never spin")
    verb.add_argument("--force", action="store_true", help="write although it is not blank")


def main(argv: Sequence[str]) -> int:
    """One verb; its exit status."""
    logging.basicConfig(format="nvmefs: %(message)s", level=logging.WARNING)
    arguments = build_parser().parse_args(argv)
    if arguments.verb == "controller":
        return serve.main(arguments)
    try:
        if devices.answers(arguments):
            values, text = devices.answer(arguments)
        else:
            values = trio.run(_run, arguments)
            if arguments.verb == "reset":
                values |= devices.give_back(arguments.spec)
            text = show.text(values)
    except InUse as error:
        lines, values = devices.refusal(error)
        print(f"nvmefs {arguments.verb}: " + "\n".join(lines), file=sys.stderr)
        if arguments.output == "json":
            _print_json(values)
        return EXIT_FAILED
    except DriverError as error:
        print(f"nvmefs {arguments.verb}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"nvmefs {arguments.verb}: interrupted", file=sys.stderr)
        return EXIT_FAILED
    if arguments.output == "json":
        _print_json(values)
    else:
        print(text or "none")
    return EXIT_FAILED if values.get("failed") else 0


def _print_json(values: show.Values) -> None:
    print(json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2))


async def _run(arguments: argparse.Namespace) -> show.Values:
    nsid: int | None = getattr(arguments, "nsid", None)
    async with await _open(arguments) as controller:
        if arguments.verb == "perf":
            job = perf.Job(
                pattern=arguments.rw,
                block_bytes=arguments.bs,
                depth=int(arguments.qd),
                seconds=arguments.time,
                wait="poll"
                if arguments.poll
                else "interrupt"
                if arguments.interrupt
                else "adaptive",
                force=arguments.force,
            )
            return await perf.measure(controller, nsid, job)
        if arguments.verb == "get-feature":
            return await show.feature(controller, arguments.feature, nsid)
        if arguments.verb in manage.VERBS:
            return await manage.run(controller, arguments)
        verb = show.namespaces if arguments.verb == "list" else _QUERIES[arguments.verb][0]
        return await verb(controller, nsid)


async def _open(arguments: argparse.Namespace) -> Controller:
    """null:SIZE is for measuring alone: a drive that forgets everything is no place for files."""
    # A small pool: as much as ordinary users may lock where nobody has raised RLIMIT_MEMLOCK.
    noiommu = bool(getattr(arguments, "noiommu", False))
    options = DriverOptions(io_queues=2, queue_depth=64, dma_bytes=8 << 20, noiommu=noiommu)
    timeout_s = getattr(arguments, "command_timeout", None)
    if timeout_s is not None:
        options = replace(options, command_timeout_s=timeout_s or None)
    spec: str | Address | Transport = arguments.spec
    if arguments.verb == "perf":
        needed = arguments.qd * arguments.bs * 2 + (16 << 20)
        options = replace(options, dma_bytes=max(options.dma_bytes, int(needed)))
        options = replace(options, queue_depth=min(max(int(arguments.qd) + 1, 64), 4095))
        if arguments.spec.startswith("null:"):
            from ..transports.embedded import open_embedded

            spec = open_embedded(arguments.spec, queues=_NULL_QUEUES, queue_entries=2048)
    else:
        spec = parse_address(arguments.spec)
        options = replace(options, read_only=_write_protected(spec))
    return await open_controller(spec, options=options)


def _write_protected(address: Address) -> bool:
    """An image that this user may not write is a write-protected namespace."""
    path = address.endpoint
    return address.kind == "file" and os.path.exists(path) and not os.access(path, os.W_OK)
