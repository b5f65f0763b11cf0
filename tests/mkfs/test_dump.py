"""nvmefs dump: all that is there is shown, what is wrong is named, and no image makes it fail otherwise."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from mkfs.check.findings import Findings
from mkfs.check.load import Unusable, load
from mkfs.cli import ToolError, UsageError
from mkfs.describe import Values
from mkfs.dump import JsonOutput, TextOutput, parse, show_subject
from mkfs.dump import main as dump
from mkfs.mkfs import main as mkfs
from mkfs.subjects import SUBJECTS, View, show_superblocks
from nvmefs.errors import Corrupted, FsError
from nvmefs.layout import (
    BLOCK_BYTES,
    SUPERBLOCK,
    SUPERBLOCK_COPY,
    bitmap_block,
    reseal,
)
from tests.golden.make import load as golden
from tests.hostile.campaign import image_of, names_of
from tests.mkfs.builder import small_tree
from tests.support.images import tiny_allowed
from tests.support.ram import RamNamespace


class Kept:
    """An output that keeps what it is given."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.rows: list[tuple[str, Values]] = []

    def head(self, values: Values) -> None:
        self.values |= values

    def row(self, kind: str, values: Values) -> None:
        self.rows.append((kind, values))

    def of(self, kind: str) -> list[Values]:
        return [values for each, values in self.rows if each == kind]


async def shown(
    namespace: RamNamespace, subject: str, which: str | None = None, *, raw: bool = False
) -> Kept:
    output = Kept()
    if subject == "super":
        await show_superblocks(namespace.device(), output)
    else:
        given = Namespace(device="ram", subject=subject, which=which, raw=raw, superblock_at=None)
        await show_subject(namespace.device(), given, output)
    json.dumps([output.values, output.rows])
    return output


async def test_a_path_leads_to_all_items_of_its_inode() -> None:
    found = await shown(golden("kinds"), "path", "/sparse")
    (inode,) = found.of("inode")
    assert (inode["type"], inode["mode"], inode["uid"]) == ("file", "0640", 1000)
    extents = found.of("extent")
    assert {extent["offset"] for extent in extents} >= {0, 256, 1 << 28}
    (parent,) = found.of("parent")
    assert parent["entries"] == [{"directory": 1, "name": "sparse"}]
    assert (await shown(golden("kinds"), "inode", str(inode["inode"]))).rows == found.rows


async def test_names_of_a_directory() -> None:
    found = await shown(golden("kinds"), "path", "/")
    names = {entry["name"] for item in found.of("dirent") for entry in item["entries"]}
    assert {"sparse", "size-4097", "unwritten"} <= names
    assert found.of("inode")[0]["entries"] == len(names)


async def test_a_name_that_is_not_there() -> None:
    with pytest.raises(ToolError, match="'nothing' in directory 1: there is no such name"):
        await shown(golden("kinds"), "path", "/nothing/at/all")


async def test_the_tree_of_some_inodes() -> None:
    whole = await shown(golden("kinds"), "tree")
    numbers = [values["inode"] for kind, values in whole.rows if kind == "inode"]
    assert numbers[0] == 1
    assert len(numbers) > 20
    part = await shown(golden("kinds"), "tree", f"{numbers[3]}-{numbers[5]}")
    assert [values["inode"] for values in part.of("inode")] == numbers[3:6]
    rest = await shown(golden("kinds"), "tree", f"{numbers[3]}-")
    assert [values["inode"] for values in rest.of("inode")] == numbers[3:]
    for text in ("a", "1-2-3", "-5"):
        with pytest.raises(UsageError, match="no range of inodes"):
            await shown(golden("kinds"), "tree", text)


async def test_records_of_the_journal() -> None:
    found = await shown(golden("crashed"), "journal")
    assert [row["block"] for row in found.of("superblock")] == [18, 19]
    records = found.of("record")
    assert records
    assert all(17 in record["homes"] for record in records)
    (end,) = found.of("end")
    assert "magic" in end["why"]


async def test_before_and_after_replay() -> None:
    namespace = golden("crashed")
    assert (await shown(namespace, "state")).values != (
        await shown(namespace, "state", raw=True)
    ).values
    found = await shown(namespace, "block", "17")
    assert found.values["journal_holds_a_newer_one"]


async def test_a_superblock_that_the_journal_changes() -> None:
    assert (await shown(golden("grown"), "super")).values["blocks"] == 33_000
    assert (await shown(golden("grown"), "block", "16")).values["blocks"] == 33_300
    assert (await shown(golden("grown"), "block", "16", raw=True)).values["blocks"] == 33_000


async def test_free_space_adds_up() -> None:
    namespace = golden("kinds")
    free = await shown(namespace, "free")
    assert free.values["free_blocks"] == free.values["state_says"]
    assert sum(row["blocks"] for row in free.of("runs")) == free.values["free_blocks"]
    groups = [await shown(namespace, "group", str(group)) for group in range(2)]
    runs = [run["count"] for group in groups for run in group.of("free")]
    assert sum(runs) == free.values["free_blocks"]
    with pytest.raises(UsageError, match="a number from 0 to 1"):
        await shown(namespace, "group", "2")


# --- what is wrong ----------------------------------------------------------------------------------------


async def test_a_damaged_node_is_shown_and_named() -> None:
    builder = small_tree()
    namespace = RamNamespace(builder.superblock.block_count, dict(builder.build().blocks))
    leaf = builder.leaves[1]
    block = bytearray(namespace.blocks[leaf])
    block[200] ^= 1
    namespace.blocks[leaf] = bytes(block)
    found = await shown(namespace, "block", str(leaf))
    assert "checksum" in found.values["faults"][0]
    assert found.rows, "its slots are shown all the same"
    tree = await shown(namespace, "tree")
    assert any(f"block {leaf}: checksum" in row["what"] for row in tree.of("fault"))
    assert tree.of("lost")
    assert len(tree.of("inode")) > 3


async def test_slots_that_point_anywhere() -> None:
    builder = small_tree()
    namespace = RamNamespace(builder.superblock.block_count, dict(builder.build().blocks))
    leaf = builder.leaves[0]
    block = bytearray(namespace.blocks[leaf])
    block[64 + 16 : 64 + 20] = b"\xf0\x0f\xff\xff"
    block[56:58] = b"\xff\xff"
    reseal(block, builder.superblock.checksum_seed)
    namespace.blocks[leaf] = bytes(block)
    found = await shown(namespace, "block", str(leaf))
    assert "tree node: its number of items is impossible" in found.values["faults"]
    assert any("a value of 65535 bytes" in str(row) for row in found.of("item"))


async def test_superblocks_that_are_bad_or_differ() -> None:
    namespace = golden("kinds")
    changed = bytearray(namespace.blocks[SUPERBLOCK_COPY])
    changed[144:149] = b"other"
    reseal(changed, 0)
    namespace.blocks[SUPERBLOCK_COPY] = bytes(changed)
    found = await shown(namespace, "super")
    assert found.values["valid"] == 3
    assert {"block": SUPERBLOCK_COPY, "label": "other"} in found.of("superblock")
    namespace.blocks[SUPERBLOCK] = b"\xff" * BLOCK_BYTES
    found = await shown(namespace, "super")
    assert found.values["valid"] == 2
    assert "magic" in found.of("superblock")[0]["fault"]


async def test_a_bitmap_that_cannot_be_believed() -> None:
    namespace = golden("kinds")
    namespace.blocks[bitmap_block(1)] = b"\x01" * BLOCK_BYTES
    assert "magic" in (await shown(namespace, "group", "1")).values["fault"]
    assert (await shown(namespace, "free")).of("bad")[0]["group"] == 1


@pytest.mark.timeout(120)
async def test_hostile_images() -> None:
    """Each subject answers, or says in one line why it cannot."""
    answered, said = 0, []
    for name in names_of(5000, 60):
        with tiny_allowed():
            image = await image_of(name)
            await shown(image, "super")
            for subject, (_, needs) in SUBJECTS.items():
                for which in {"N": ("0", "1", "17", "200"), "PATH": ("/", "/a/b")}.get(
                    needs or "", (None,)
                ):
                    try:
                        await shown(image, subject, which)
                    except (ToolError, UsageError, Unusable, FsError) as error:
                        said.append(str(error))
                    else:
                        answered += 1
    assert answered > 300
    assert not [text for text in said if "\n" in text]


# --- the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    assert mkfs(["-q", "--size", "16M", "-L", "esc\u00e9", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["super"],
        ["state"],
        ["group", "0"],
        ["inode", "1"],
        ["path", "/"],
        ["tree"],
        ["tree", "1-"],
        ["block", "0"],
        ["block", "0x14"],
        ["journal"],
        ["free"],
    ],
)
def test_text_and_json(image: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = image.read_bytes()
    assert dump([str(image), *words]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\n")
    assert dump(["--json", str(image), *words]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["schema_version"], told["subject"]) == (1, (words or ["super"])[0])
    assert isinstance(told["rows"], list)
    assert image.read_bytes() == before


def test_a_pipe_that_is_closed_is_no_traceback(
    image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    assert dump([str(image), "tree"]) == 1
    assert capsys.readouterr().err == ""


def test_names_do_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    TextOutput().row("dirent", {"entries": [{"name": "\x1b[2J\n", "inode": 5}]})
    assert capsys.readouterr().out == "dirent     \n             name \\x1b[2J\\n  inode 5\n"
    output = JsonOutput("d", "tree")
    output.end()
    assert json.loads(capsys.readouterr().out)["rows"] == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["a", "inode"], 2, "inode needs N"),
        (["a", "state", "5"], 2, "state takes no '5'"),
        (["a", "everything"], 2, "invalid choice"),
        (["nothing.img"], 1, "nothing.img: No such file"),
    ],
)
def test_what_cannot_be_shown(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dump(words) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_no_filesystem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "zeroes"
    path.write_bytes(bytes(1 << 20))
    assert dump([str(path)]) == 1
    assert "valid            0" in capsys.readouterr().out
    assert dump([str(path), "tree"]) == 1
    assert "no valid superblock" in capsys.readouterr().err


async def test_a_lost_state_block() -> None:
    namespace = golden("kinds")
    namespace.blocks[17] = bytes(range(256)) * 16
    found = await shown(namespace, "state")
    assert "magic" in found.values["faults"][0]
    with pytest.raises(ToolError, match="root is not known"):
        await shown(namespace, "tree")
    source = await load(namespace.device(), Findings())
    view = View(source, Kept())
    with pytest.raises((ToolError, Corrupted)):
        view.root()
    assert parse(["x"]).subject == "super"
