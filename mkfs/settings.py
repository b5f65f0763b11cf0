"""What a user may set in a superblock: label, UUID, reserve, errors policy, features. Words become values.

Below: layout.py.  Above: the command lines that make a filesystem or change one.

    reserve = parse_reserve("5%")                    reserve.blocks(block_count)
    changes = parse_features("long_journal")         changes.on, changes.off: names of features
"""

from __future__ import annotations

import argparse
import os
import uuid as uuids
from dataclasses import dataclass

from mkfs.cli import parse_size
from nvmefs.layout import (
    BLOCK_BYTES,
    COMPAT_KNOWN,
    ERROR_POLICIES,
    INCOMPAT_KNOWN,
    INCOMPAT_LOG_KNOWN,
    RO_COMPAT_KNOWN,
    ErrorPolicy,
    Superblock,
)

LABEL_BYTES = 64
MAX_RESERVE_PERCENT = 50

# The feature sets by the name of their field in the superblock: bit -> name.
FEATURE_SETS = {
    "compat": COMPAT_KNOWN,
    "ro_compat": RO_COMPAT_KNOWN,
    "incompat": INCOMPAT_KNOWN,
    "incompat_log": INCOMPAT_LOG_KNOWN,
}
FEATURE_NOTES = {
    "long_journal": "the journal may have more than 125 MiB, up to 1 GiB (chosen by mkfs.nvmefs only)",
}


@dataclass(frozen=True)
class Reserve:
    """Space that only root may use: a part of the filesystem, or a number of bytes."""

    percent: float = 0.0
    size_bytes: int = 0

    def blocks(self, block_count: int) -> int:
        return int(block_count * self.percent / 100) + self.size_bytes // BLOCK_BYTES


@dataclass(frozen=True)
class FeatureChanges:
    """Names of features to switch on and off."""

    on: frozenset[str] = frozenset()
    off: frozenset[str] = frozenset()


NO_RESERVE = Reserve()
NO_CHANGES = FeatureChanges()


# --- words to values; each raises argparse.ArgumentTypeError ----------------------------------


def parse_label(text: str) -> bytes:
    """A label as it stands on the disk: at most 64 bytes of UTF-8 without control characters."""
    label = os.fsencode(text)
    if len(label) > LABEL_BYTES:
        raise argparse.ArgumentTypeError(
            f"a label of {len(label)} bytes: at most {LABEL_BYTES} are possible"
        )
    try:
        label.decode()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{label!r} is not a label: it is not UTF-8") from None
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a label: it has control characters")
    return label


def parse_uuid(text: str) -> bytes:
    """A UUID in any of its usual forms."""
    try:
        value = uuids.UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from None
    if not value.int:
        raise argparse.ArgumentTypeError(f"{text!r} says that there is no UUID: name another")
    return value.bytes


def parse_reserve(text: str) -> Reserve:
    """'5' and '5%' are percent, as for mke2fs; '512M' is a size."""
    number = text.removesuffix("%")
    try:
        percent = float(number)
    except ValueError:
        if number != text:
            raise argparse.ArgumentTypeError(f"{text!r} is not a percentage") from None
        return Reserve(size_bytes=parse_size(text))
    if not 0 <= percent <= MAX_RESERVE_PERCENT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a percentage from 0 to {MAX_RESERVE_PERCENT}"
        )
    return Reserve(percent=percent)


def parse_errors(text: str) -> ErrorPolicy:
    """'continue' or 'remount-ro'."""
    if text not in ERROR_POLICIES:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(ERROR_POLICIES)}")
    return ERROR_POLICIES[text]


def parse_features(text: str) -> FeatureChanges:
    """'a,^b': a on, b off. The last word about a feature counts."""
    wanted: dict[str, bool] = {}
    known = {name for names in FEATURE_SETS.values() for name in names.values()}
    for word in text.split(","):
        name = word.removeprefix("^")
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"there is no feature {name!r}: there are {', '.join(sorted(known))} (see -O list)"
            )
        wanted[name] = name == word
    return FeatureChanges(
        frozenset(name for name, on in wanted.items() if on),
        frozenset(name for name, on in wanted.items() if not on),
    )


# --- values to words --------------------------------------------------------------------------


def feature_table() -> list[str]:
    """A line for each feature: name, set and bit, what it is."""
    return [
        f"{name:14} {kind:12} bit {bit.bit_length() - 1:<3} {FEATURE_NOTES[name]}"
        for kind, names in FEATURE_SETS.items()
        for bit, name in names.items()
    ]


def feature_names(superblock: Superblock) -> list[str]:
    """The features that are on, by name; those without one by their set and bit."""
    return [
        names.get(1 << bit, f"{kind}:{bit}")
        for kind, names in FEATURE_SETS.items()
        for bit in range(64)
        if getattr(superblock, kind) >> bit & 1
    ]


def policy_name(on_error: int) -> str:
    """The word for an errors policy."""
    return next(word for word, policy in ERROR_POLICIES.items() if policy == on_error)
