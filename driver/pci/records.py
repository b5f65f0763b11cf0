"""What a controller was, kept in /run/nvmefs while vfio-pci has it: sysfs has forgotten by then.

Model, serial, namespaces and what was on them, as JSON, for `nvmefs list`. A record belongs to one
stay of a device on its bus: sysfs gives each a new inode number, so that of a drive which was
replaced is not taken for its successor's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import TransportError
from .sysfs import PciFunction
from .usage import contents


def describe(function: PciFunction) -> dict[str, Any]:
    """Model, serial, firmware, namespaces and their contents, as the kernel's driver shows them."""
    return {
        "model": function.model,
        "serial": function.serial,
        "firmware": function.firmware,
        "by_id": function.by_id_names(),
        "namespaces": [
            {
                "nsid": namespace.nsid,
                "name": namespace.name,
                "size_bytes": namespace.size_bytes,
                "contents": {
                    name: _contents(function, name)
                    for name in (namespace.name, *namespace.partitions)
                },
            }
            for namespace in function.namespaces()
        ],
    }


def _contents(function: PciFunction, name: str) -> list[str]:
    try:
        return contents(function.machine, name)
    except (TransportError, OSError) as error:
        return [f"unknown ({error.strerror if isinstance(error, OSError) else error})"]


def remember(function: PciFunction) -> None:
    """Before the kernel's driver goes. Raises TransportError if /run cannot be written."""
    _write(function, {"inode": function.path.stat().st_ino, **describe(function)})


def _write(function: PciFunction, record: dict[str, Any]) -> None:
    path = _path(function)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        fresh.replace(path)
    except OSError as error:
        raise TransportError(f"{path}: cannot be written: {error.strerror}") from None


def recall(function: PciFunction) -> dict[str, Any] | None:
    """What remember() wrote during this stay of the device; None if it did not."""
    try:
        record = json.loads(_path(function).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.pop("inode", None) != function.path.stat().st_ino:
        return None
    return record


def mark_borrowed(function: PciFunction) -> None:
    """It is to go back to the kernel's driver when its user ends. Raises TransportError."""
    record = {"inode": function.path.stat().st_ino, **(recall(function) or {}), "borrowed": True}
    _write(function, record)


def is_borrowed(function: PciFunction) -> bool:
    """What mark_borrowed() has left; remember() begins anew."""
    return bool((recall(function) or {}).get("borrowed"))


def keep(function: PciFunction) -> None:
    """Not borrowed any more: somebody wants it to stay. Raises TransportError."""
    if is_borrowed(function):
        record = recall(function) or {}
        _write(function, {"inode": function.path.stat().st_ino, **record, "borrowed": False})


def forget(function: PciFunction) -> None:
    """It is back with the kernel's driver."""
    _path(function).unlink(missing_ok=True)


def _path(function: PciFunction) -> Path:
    return function.machine.run / "nvmefs/pci" / f"{function.bdf}.json"
