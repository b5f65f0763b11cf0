"""Asynchronous events: what the controller tells without being asked.

One Asynchronous Event Request is always outstanding. Each event names a log page; reading it lets
events of that type come again. What is done:

    error            logged; after an internal error the controller is asked whether it has failed,
                     after a persistent one it is reset
    health (SMART)   logged, with the warnings of the log page
    namespaces       those in use are identified again: grown ones tell, vanished ones are given up
    firmware         while the controller activates it (CSTS.PP) no deadline passes
    all else         logged

NVM Express base specification 2.0, section 5.2.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio

from . import commands, logs
from .commands import Feature, Log
from .errors import CommandError, ControllerError, ControllerFailed, InvalidRequest
from .registers import CSTS_PP

if TYPE_CHECKING:
    from .controller import Controller

_log = logging.getLogger("nvmefs.driver")

_ERROR, _SMART, _NOTICE, _IMMEDIATE, _COMMAND_SET, _VENDOR = 0, 1, 2, 3, 6, 7
_KINDS = {
    _ERROR: "error",
    _SMART: "health",
    _NOTICE: "notice",
    _IMMEDIATE: "immediate",
    _COMMAND_SET: "command set",
    _VENDOR: "vendor",
}
_NAMES = {
    (_ERROR, 0): "a write to the doorbell of no queue",
    (_ERROR, 1): "an invalid doorbell value",
    (_ERROR, 2): "diagnostic failure",
    (_ERROR, 3): "persistent internal error",
    (_ERROR, 4): "transient internal error",
    (_ERROR, 5): "firmware image load error",
    (_SMART, 0): "reliability degraded",
    (_SMART, 1): "temperature threshold",
    (_SMART, 2): "spare space below threshold",
    (_NOTICE, 0): "namespaces changed",
    (_NOTICE, 1): "firmware activation starting",
    (_NOTICE, 2): "telemetry log changed",
    (_NOTICE, 3): "asymmetric access changed",
    (_NOTICE, 4): "predictable latency log changed",
    (_NOTICE, 5): "LBA status information",
    (_NOTICE, 6): "endurance group log changed",
    (_IMMEDIATE, 0): "the subsystem is shut down",
    (_COMMAND_SET, 0): "reservation log page available",
    (_COMMAND_SET, 1): "sanitize operation completed",
}
_INTERNAL_ERRORS = (2, 3, 4)
_PERSISTENT = 3
_RESET_AGAIN_S = 60.0
_LOG_BYTES = 512
_LONGEST_ACTIVATION_MS = 60_000  # where the controller names no maximum (MTFA)
_LOOK_S = 0.05
SMART_EVENTS = 0x1F
NAMESPACE_EVENTS = 0x100
FIRMWARE_EVENTS = 0x200


async def configure(controller: Controller) -> None:
    """Asks for the events that watch() understands; to be repeated after a reset."""
    offered = controller.identify.optional_events
    wanted = SMART_EVENTS | offered & (NAMESPACE_EVENTS | FIRMWARE_EVENTS)
    command = commands.set_features(Feature.ASYNC_EVENT_CONFIG, wanted)
    try:
        await controller.admin.submit(command)
    except CommandError as error:
        _log.warning("%s: the events cannot be chosen: %s", controller.where, error)


async def watch(controller: Controller) -> None:
    """The task; runs until cancelled, or until the controller refuses to have events."""
    admin = controller.admin
    last_reset_s = -math.inf
    while True:
        admin.resident += 1
        try:
            result = await admin.submit(commands.async_event_request(), timeout_ns=0)
        except CommandError as error:
            _log.warning("%s: no asynchronous events: %s", controller.where, error)
            return
        finally:
            admin.resident -= 1
        controller.events += 1
        try:
            await _handle(controller, result)
            if result & 0xFFFF == _ERROR | _PERSISTENT << 8:
                await _reset(controller, trio.current_time() - last_reset_s)
                last_reset_s = trio.current_time()
        except CommandError as error:
            _log.warning("%s: the log page of an event: %s", controller.where, error)


async def _handle(controller: Controller, result: int) -> None:
    kind, info, page = result & 7, result >> 8 & 0xFF, result >> 16 & 0xFF
    if (kind, info) == (_NOTICE, 0):
        await _namespaces_changed(controller)
        return
    name = _NAMES.get((kind, info), f"code {info:#x}")
    text = f"{controller.where}: {_KINDS.get(kind, f'type {kind}')} event: {name}"
    if kind == _SMART:
        raw = await controller.log_page(Log.SMART, logs.SMART_BYTES)
        now = ", ".join(logs.smart(raw)["critical_warnings"]) or "no warning any more"
        _log.warning("%s (%s)", text, now)
    elif kind == _ERROR:
        _log.error("%s", text)
        await controller.log_page(Log.ERROR, logs.ERROR_ENTRY_BYTES)
        if info in _INTERNAL_ERRORS:
            controller.hardware.check_alive()
    elif (kind, info) == (_NOTICE, 1):
        _log.warning("%s", text)
        await _wait_for_firmware(controller)
        await controller.log_page(Log.FIRMWARE, logs.FIRMWARE_BYTES)
    else:
        _log.warning("%s (log page %#x)", text, page)
        if page:
            await controller.log_page(page, _LOG_BYTES)


async def _reset(controller: Controller, since_s: float) -> None:
    """What is in flight is sent again. A reset that did not help is the last one."""
    if since_s < _RESET_AGAIN_S:
        raise ControllerFailed(
            f"{controller.where}: persistent internal error again, {since_s:.0f} s after a reset"
        )
    await controller.reset(lambda _piece: None)


async def _wait_for_firmware(controller: Controller) -> None:
    """Resetting a controller for being slow now is the last thing to do (section 3.11)."""
    named_ms = controller.identify.firmware_activation_ms
    end = trio.current_time() + (named_ms or _LONGEST_ACTIVATION_MS) / 1000
    while controller.hardware.status() & CSTS_PP:
        if trio.current_time() >= end:
            _log.error("%s: CSTS.PP stays 1: deadlines count again", controller.where)
            return
        for queue in controller.queue_set.all:
            queue.extend_all()
        await trio.sleep(_LOOK_S)


async def _namespaces_changed(controller: Controller) -> None:
    ids = set(logs.changed(await controller.log_page(Log.CHANGED_NAMESPACES, logs.CHANGED_BYTES)))
    everything = logs.TOO_MANY_CHANGED in ids
    for nsid in sorted(ids - set(controller.opened) - {logs.TOO_MANY_CHANGED}):
        _log.info("%s: namespace %d appeared, changed or vanished", controller.where, nsid)
    for namespace in list(controller.opened.values()):
        if not everything and namespace.nsid not in ids:
            continue
        try:
            await namespace.refresh()
        except (CommandError, ControllerError, InvalidRequest) as error:
            controller.opened.pop(namespace.nsid, None)
            namespace.lose(str(error))
            _log.error("%s: namespace %d is gone: %s", controller.where, namespace.nsid, error)
