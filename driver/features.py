"""What the driver chooses of a controller's features, after each time it was enabled.

    Asynchronous Event Configuration   the events that are understood (events.py)
    Host Behavior Support              ACRE: a failed command may name a delay before it is sent again
                                       (CRD in its status, CRDT1 to 3 in Identify Controller)

All others stay as they are: power states, interrupt coalescing and the write cache are the business
of who owns the drive. The number of queues is asked for in controller.py.

NVM Express base specification 2.0, section 5.27.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from . import commands, events
from .commands import Feature
from .errors import CommandError

if TYPE_CHECKING:
    from .controller import Controller

_log = logging.getLogger("nvmefs.driver")

_HOST_BEHAVIOR_BYTES = 512
_ACRE = 1


async def configure(controller: Controller) -> None:
    """To be repeated after a reset. What the controller refuses is logged, and done without."""
    await events.configure(controller)
    if any(controller.identify.retry_delays_ms):
        await _allow_retry_delays(controller)


async def _allow_retry_delays(controller: Controller) -> None:
    """The other fields of Host Behavior Support are left as they are."""
    nbytes = _HOST_BEHAVIOR_BYTES
    with await controller.dma.allocate_wait(nbytes) as buffer:
        buffer.view[:] = bytes(nbytes)
        try:
            for command in (
                commands.get_features(Feature.HOST_BEHAVIOR),
                commands.set_features(Feature.HOST_BEHAVIOR, 0),
            ):
                await controller.admin.submit(command, buffer.iova, nbytes, (buffer,))
                buffer.view[0] = _ACRE
        except CommandError as error:
            _log.debug("%s: no delays before retries: %s", controller.where, error)
