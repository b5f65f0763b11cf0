"""Sizes as people write and read them.

Below: nothing.  Above: every command line of ours.
"""

from __future__ import annotations

import argparse
import re

_UNITS: dict[str, int] = {"": 1}
for _power, _letter in enumerate("KMGTPE", start=1):
    _UNITS[_letter] = _UNITS[_letter + "IB"] = 1024**_power
    _UNITS[_letter + "B"] = 1000**_power


def parse_size(text: str) -> int:
    """'10G', '512MiB', '1.5T', '4096' in bytes. K, M, G ... count by 1,024; KB, MB ... by 1,000."""
    match = re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[3].upper()) if match else None
    if match is None or unit is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512M, 8G, 1.5TiB or bytes")
    whole, fraction = int(match[1]), match[2] or ""
    if fraction and unit == 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of bytes")
    return whole * unit + int(fraction or "0") * unit // int("1" + "0" * len(fraction))


def show_size(size_bytes: int) -> str:
    """'8 GiB', '125 MiB', '1.5 TiB': three digits that a person reads."""
    power = max(0, size_bytes.bit_length() - 1) // 10
    value = size_bytes / 1024**power
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")[power]
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.3g} {unit}"
