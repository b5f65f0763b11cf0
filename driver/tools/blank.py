"""Whether there is something on a namespace that must not be lost by mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidRequest

if TYPE_CHECKING:
    from ..namespace import Namespace

_EDGE_BYTES = 1 << 20


async def refuse_unless_blank(namespace: Namespace, doing: str) -> None:
    """Every filesystem, volume manager and partition table has something at an end of the disk.

    Raises InvalidRequest when the first or last MiB is not all zeroes.
    """
    edge = min(_EDGE_BYTES, namespace.size_bytes)
    for first in (0, namespace.size_bytes - edge):
        found = bytearray(edge)
        await namespace.read(first // namespace.lba_bytes, found)
        if any(found):
            at = first + next(i for i, byte in enumerate(found) if byte)
            raise InvalidRequest(
                f"{namespace.where}: not blank (byte {at} is not zero), and {doing} would destroy "
                "what is there: --force if that is meant"
            )
