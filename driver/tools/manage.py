"""The verbs that change a drive: format, create-ns, delete-ns, attach-ns, detach-ns.

What destroys data looks at the disk first, and refuses when it is not blank. --force overrides it,
and then a PCI address has to be typed in full: short forms and history are how the wrong drive is hit.

Below: driver/management.py, blank.py. Above: cli.py.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..address import parse_address
from ..errors import CommandError, ControllerError, InvalidRequest
from ..management import ERASE_DATA, ERASE_KEY, ERASE_NOTHING
from .blank import refuse_unless_blank

if TYPE_CHECKING:
    from ..controller import Controller

Values = dict[str, Any]
_ERASE = {"none": ERASE_NOTHING, "data": ERASE_DATA, "key": ERASE_KEY}
_WORDS = {
    "format": "format a namespace: all its data is lost",
    "create-ns": "create a namespace, attached to no controller",
    "delete-ns": "delete a namespace: all its data is lost",
    "attach-ns": "attach a namespace to this controller",
    "detach-ns": "take a namespace from this controller; its data stays",
}
VERBS = frozenset(_WORDS)


def add_verbs(verbs: Any, *shared: argparse.ArgumentParser) -> None:
    """Adds the parsers of these verbs."""
    for name, words in _WORDS.items():
        verb = verbs.add_parser(name, parents=list(shared), help=words, description=words)
        verb.add_argument("spec", metavar="SPEC", help="an image file, a PCI address")
        if name != "create-ns":
            verb.add_argument("-n", "--nsid", type=int, required=name != "format")
        if name in ("format", "create-ns"):
            verb.add_argument("-l", "--lbaf", type=int, metavar="N", help="format, see id-ns")
        if name == "format":
            verb.add_argument(
                "--erase", choices=sorted(_ERASE), default="none", help="how to erase"
            )
        if name == "create-ns":
            verb.add_argument("--blocks", type=int, required=True, metavar="N", help="its size")
        if name in ("format", "delete-ns"):
            verb.add_argument("--force", action="store_true", help="although it is not blank")


async def run(controller: Controller, arguments: argparse.Namespace) -> Values:
    """One verb. Raises InvalidRequest, Unsupported, CommandError."""
    nsid = getattr(arguments, "nsid", None) or controller.default_nsid
    if arguments.verb in ("format", "delete-ns"):
        await _check(controller, nsid, arguments)
    if arguments.verb == "format":
        erase = _ERASE[arguments.erase]
        await controller.manage.format(nsid, arguments.lbaf, erase=erase)
        namespace = await controller.namespace(nsid)
        return {
            "nsid": nsid,
            "lba_bytes": namespace.lba_bytes,
            "size_bytes": namespace.size_bytes,
        }
    if arguments.verb == "create-ns":
        return {"nsid": await controller.manage.create(arguments.blocks, arguments.lbaf or 0)}
    verbs = {
        "delete-ns": controller.manage.delete,
        "attach-ns": controller.manage.attach,
        "detach-ns": controller.manage.detach,
    }
    await verbs[arguments.verb](nsid)
    return {"nsid": nsid, "namespaces": await controller.namespaces()}


async def _check(controller: Controller, nsid: int, arguments: argparse.Namespace) -> None:
    if arguments.force:
        address = parse_address(arguments.spec)
        if address.kind == "pci" and not arguments.spec.lower().startswith(address.endpoint):
            raise InvalidRequest(
                f"{arguments.spec}: --force wants the address in full, typed by you: "
                f"{address.endpoint}"
            )
        return
    try:
        namespace = await controller.namespace(nsid)
        await refuse_unless_blank(namespace, arguments.verb)
    except (CommandError, ControllerError) as error:
        raise InvalidRequest(
            f"{error}; so it cannot be seen what is on it: --force if its data is not wanted"
        ) from error
