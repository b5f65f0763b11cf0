"""What libblkid recognises on a block device or in a file, in words: `blkid -p`.

answer = probe(Path("/dev/nvme0n1"))        {"TYPE": "ext4", ...}; {} if it knows nothing
describe(answer)                            ['ext4 "data", uuid ...', 'gpt partition table']
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..errors import TransportError
from .kernel import program

BLKID_BOUND_S = 30
NOTHING = 2
AMBIVALENT = 8
MBR_TYPE = 0xDA  # "non-filesystem data": what mkfs.nvmefs guards its disks with


def probe(path: Path) -> dict[str, str]:
    """The answer of blkid, by its names. Raises TransportError where it cannot look."""
    blkid = program("blkid")
    if blkid is None:
        raise TransportError("blkid is missing: install util-linux")
    try:
        path.open("rb").close()  # blkid does not tell an error from an empty disk
        done = subprocess.run(
            [blkid, "-p", "-o", "export", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BLKID_BOUND_S,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TransportError(f"blkid hangs on {path}") from None
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}") from None
    if done.returncode == AMBIVALENT:
        return {"TYPE": "several signatures at once"}
    if done.returncode not in (0, NOTHING):
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise TransportError(f"blkid cannot read {path}: {said}")
    return parse(done.stdout)


def parse(export: str) -> dict[str, str]:
    """`blkid -o export`, line by line."""
    return dict(line.split("=", 1) for line in export.splitlines() if "=" in line)


def describe(answer: dict[str, str]) -> list[str]:
    """An answer in words; [] if it names nothing."""
    found = []
    if "TYPE" in answer:
        label = f' "{answer["LABEL"]}"' if answer.get("LABEL") else ""
        uuid = f", uuid {answer['UUID']}" if answer.get("UUID") else ""
        found.append(f"{answer['TYPE']}{label}{uuid}")
    if "PTTYPE" in answer:
        found.append(f"{answer['PTTYPE']} partition table")
    return found


def is_protective(first_sector: bytes) -> bool:
    """A partition table that only keeps other tools away: one entry, of type 0xDA."""
    types = [first_sector[446 + 16 * index + 4] for index in range(4)]
    return first_sector[510:512] == b"\x55\xaa" and types == [MBR_TYPE, 0, 0, 0]
