"""Asynchronous events: what the controller tells without being asked.

One Asynchronous Event Request is always outstanding. Each event names a log page; reading it lets
events of that type come again. Health and error events are logged; a changed namespace is
identified again.

NVM Express base specification 2.0, section 5.2.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from . import commands
from .errors import CommandError, ControllerError, InvalidRequest

if TYPE_CHECKING:
    from .controller import Controller

_log = logging.getLogger("nvmefs.driver")

_ERROR, _SMART, _NOTICE = 0, 1, 2
_NAMESPACE_CHANGED = 0
_KNOWN_SMART = {
    0: "reliability degraded",
    1: "temperature threshold",
    2: "spare space below threshold",
}
_CHANGED_LIST_BYTES = 4096
_LOG_BYTES = 512
SMART_EVENTS = 0x1F
NAMESPACE_EVENTS = 0x100


async def configure(controller: Controller) -> None:
    """Asks for the events that watch() understands; to be repeated after a reset."""
    wanted = SMART_EVENTS | controller.identify.optional_events & NAMESPACE_EVENTS
    command = commands.set_features(commands.Feature.ASYNC_EVENT_CONFIG, wanted)
    try:
        await controller.admin.submit(command)
    except CommandError as error:
        _log.warning("%s: the events cannot be chosen: %s", controller.where, error)


async def watch(controller: Controller) -> None:
    """The task; runs until cancelled, or until the controller refuses to have events."""
    admin = controller.admin
    try:
        while True:
            admin.resident += 1
            try:
                result = await admin.submit(commands.async_event_request(), timeout_ns=0)
            finally:
                admin.resident -= 1
            controller.events += 1
            await _handle(controller, result)
    except CommandError as error:
        _log.warning("%s: no asynchronous events: %s", controller.where, error)


async def _handle(controller: Controller, result: int) -> None:
    kind, info, log = result & 7, result >> 8 & 0xFF, result >> 16 & 0xFF
    where = controller.where
    if kind == _NOTICE and info == _NAMESPACE_CHANGED:
        changed = await controller.log_page(log, _CHANGED_LIST_BYTES)
        await _namespaces_changed(controller, changed)
        return
    if kind == _SMART:
        _log.warning("%s: health event: %s", where, _KNOWN_SMART.get(info, f"code {info:#x}"))
    elif kind == _ERROR:
        _log.error("%s: error event, code %#x", where, info)
    else:
        _log.info("%s: event of type %d, code %#x, log page %#x", where, kind, info, log)
    await controller.log_page(log, _LOG_BYTES)


async def _namespaces_changed(controller: Controller, changed: bytes) -> None:
    ids = {int.from_bytes(changed[at : at + 4], "little") for at in range(0, len(changed), 4)}
    for namespace in list(controller.opened.values()):
        # The list holds 0xFFFFFFFF alone when more than 1,024 have changed.
        if namespace.nsid not in ids and 0xFFFFFFFF not in ids:
            continue
        try:
            await namespace.refresh()
        except (CommandError, ControllerError, InvalidRequest) as error:
            namespace.lose(str(error))
            _log.error("%s: namespace %d is gone: %s", controller.where, namespace.nsid, error)
