"""What a controller says about itself, as plain values: the same ones print as text and as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import logs
from ..commands import Feature, Log
from ..errors import CommandError, ControllerError, InvalidRequest, Unsupported
from ..registers import version_text

if TYPE_CHECKING:
    from ..controller import Controller

_MAX_ERROR_ENTRIES = 64  # one page of them

Values = dict[str, Any]


def _printable(values: dict[str, Any]) -> Values:
    return {key: v.hex() if isinstance(v, bytes) else v for key, v in values.items()}


async def id_ctrl(controller: Controller, nsid: int | None) -> Values:
    """Identify Controller, and the capabilities in its registers."""
    capabilities = asdict(controller.hardware.capabilities)
    values = _printable(asdict(controller.identify))
    values["version"] = version_text(controller.version)
    values["retry_delays_ms"] = list(controller.identify.retry_delays_ms)
    values["io_queues_granted"] = controller.io_queues_granted
    values["interrupt_vectors"] = controller.transport.vectors
    values["capabilities"] = capabilities
    return values


async def id_ns(controller: Controller, nsid: int | None) -> Values:
    """Identify Namespace."""
    namespace = await controller.namespace(nsid)
    values = _printable(asdict(namespace.identify))
    values["formats"] = [{"index": i, **form} for i, form in enumerate(values["formats"])]
    return {
        "nsid": namespace.nsid,
        "size_bytes": namespace.size_bytes,
        **values,
        "volatile_write_cache": namespace.volatile_write_cache,
    }


async def smart_log(controller: Controller, nsid: int | None) -> Values:
    """SMART / Health Information."""
    return logs.smart(await controller.log_page(Log.SMART, logs.SMART_BYTES))


async def error_log(controller: Controller, nsid: int | None) -> Values:
    """Error Information, newest first."""
    entries = min(controller.identify.error_log_entries, _MAX_ERROR_ENTRIES)
    raw = await controller.log_page(Log.ERROR, entries * logs.ERROR_ENTRY_BYTES)
    return {"room_entries": controller.identify.error_log_entries, "entries": logs.errors(raw)}


async def fw_log(controller: Controller, nsid: int | None) -> Values:
    """Firmware Slot Information."""
    return logs.firmware(await controller.log_page(Log.FIRMWARE, logs.FIRMWARE_BYTES))


async def effects_log(controller: Controller, nsid: int | None) -> Values:
    """Commands Supported and Effects."""
    if not controller.identify.effects_log:
        raise Unsupported(f"{controller.where}: the controller has no log page of effects (LPA)")
    return logs.effects(await controller.log_page(Log.EFFECTS, logs.EFFECTS_BYTES))


async def ebs_stats(controller: Controller, nsid: int | None) -> Values:
    """Statistics of an EBS volume."""
    if not controller.identify.is_ebs:
        raise Unsupported(f"{controller.where}: not an EBS volume: {controller.identify.model}")
    return logs.ebs(await controller.log_page(Log.EBS, logs.EBS_BYTES), controller.where)


async def feature(controller: Controller, number: int, nsid: int | None) -> Values:
    """The current value of one feature."""
    value = await controller.query.feature(number, nsid or 0)
    known = number in Feature._value2member_map_
    name = Feature(number).name.lower() if known else f"{number:#04x}"
    return {"feature": number, "name": name, "value": value, "value_hex": f"{value:#010x}"}


async def reset(controller: Controller, nsid: int | None) -> Values:
    """A controller reset: queues are forgotten, data stays."""
    start = time.monotonic()
    await controller.reset(lambda _piece: None)
    return {"model": controller.identify.model, "reset_ms": (time.monotonic() - start) * 1000}


async def namespaces(controller: Controller, nsid: int | None) -> Values:
    """The controller and each of its namespaces; one that cannot be used says why."""
    found: list[Values] = []
    for each in await controller.namespaces():
        try:
            namespace = await controller.namespace(each)
        except (CommandError, ControllerError, InvalidRequest) as error:
            found.append({"nsid": each, "unusable": str(error)})
            continue
        found.append(
            {
                "nsid": each,
                "size_bytes": namespace.size_bytes,
                "lba_bytes": namespace.lba_bytes,
                "id": namespace.eui,
            }
        )
    who = controller.identify
    return {
        "model": who.model,
        "serial": who.serial,
        "firmware": who.firmware,
        "namespaces": found,
    }


def text(values: Values, indent: str = "") -> str:
    """Values as lines of `name  value`; nested ones are indented."""
    lines: list[str] = []
    width = max((len(name) for name, v in values.items() if not isinstance(v, dict)), default=0)
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", text(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for each in value:
                lines += [f"{indent}{name}", text(each, indent + "  ")]
        else:
            lines.append(f"{indent}{name:{width}}  {_value(value)}".rstrip())
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return str(value)
