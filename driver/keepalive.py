"""Keep Alive: a controller whose timer runs is told at half of its time that somebody is there.

The timer runs where the controller has it on by itself (its default for the Keep Alive Timer feature
is not 0), or where DriverOptions.keep_alive_s asks for it. A controller whose timer has run out
fails (CSTS.CFS), which the ladder of recovery.py finds. A reset brings the controller's own value back;
the next turn sets ours again.

NVM Express base specification 2.0, sections 3.9 and 5.27.1.12.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from . import commands
from .commands import Feature
from .errors import CommandError

if TYPE_CHECKING:
    from .controller import Controller

_log = logging.getLogger("nvmefs.driver")

_SHORTEST_S = 0.05


async def watch(controller: Controller) -> None:
    """The task; ends at once where no timer runs, else with the controller."""
    where, granularity_ms = controller.where, controller.identify.keep_alive_granularity_ms
    wanted_s = controller.options.keep_alive_s
    if not granularity_ms:
        if wanted_s:
            _log.warning("%s: the controller has no Keep Alive (KAS is 0)", where)
        return
    while True:
        try:
            timeout_ms = await _timeout_ms(controller, wanted_s, granularity_ms)
            if not timeout_ms:
                return
            await controller.admin.submit(commands.keep_alive())
        except CommandError as error:
            _log.warning("%s: keep alive: %s", where, error)
            timeout_ms = granularity_ms * 2
        await trio.sleep(max(timeout_ms / 2000, _SHORTEST_S))


async def _timeout_ms(controller: Controller, wanted_s: float, granularity_ms: int) -> int:
    """What the controller's timer is set to; ours is set first, where it is not yet."""
    get = commands.get_features(Feature.KEEP_ALIVE_TIMER)
    present_ms = await controller.admin.submit(get)
    wanted_ms = -(-int(wanted_s * 1000) // granularity_ms) * granularity_ms
    if not wanted_ms or present_ms == wanted_ms:
        return present_ms
    await controller.admin.submit(commands.set_features(Feature.KEEP_ALIVE_TIMER, wanted_ms))
    return wanted_ms
