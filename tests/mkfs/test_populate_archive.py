"""Filling a filesystem from tar archives: those of tar(1), and those that nobody should make."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mkfs.cli import ToolError
from mkfs.mkfs import main as mkfs
from mkfs.populate.acltext import parse_acl
from nvmefs import acl
from nvmefs.acl import AclEntry
from nvmefs.layout import BLOCK_BYTES
from tests.mkfs.test_populate import AS_ROOT, MIB, alike, made, tree_in, tree_of, write

GNU_TAR = shutil.which("tar")
Add = Callable[..., None]


class Archive:
    """An archive in the making."""

    def __init__(self, form: int = tarfile.PAX_FORMAT) -> None:
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w", format=form)  # noqa: SIM115

    def add(self, name: str, data: bytes = b"", **fields: Any) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in fields.items():
            setattr(member, field, value)
        self.tar.addfile(member, io.BytesIO(data))

    def save(self, path: Path) -> Path:
        self.tar.close()
        path.write_bytes(self.bytes.getvalue())
        return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "dir/below").mkdir(parents=True)
    for size in (0, 1, 900, 901, 4096, 2 * MIB + 3):
        write(top / f"size-{size}", size)
    (top / ("n" * 255)).write_text("long name")
    (top / "dir/below" / ("m" * 120)).mkdir()
    (top / "dir/below" / ("m" * 120) / ("k" * 130)).write_text("long path")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).write_text("odd name")
    (top / "link").symlink_to("x/" * 300)
    os.link(top / "size-901", top / "dir/linked")
    os.mkfifo(top / "fifo")
    with (top / "sparse").open("wb") as file:
        for at in range(7, 10 * MIB, MIB):
            file.seek(at)
            file.write(b"data" * 1500)
        file.truncate(30 * MIB)
    (top / "hole").touch()
    os.truncate(top / "hole", 12345678)
    os.utime(top / "size-1", ns=(5, 1_000_000_000_000_000_000))
    return top


def whole_seconds(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


def tar(tree: Path, archive: Path, *options: str) -> Path:
    command = ["tar", "-C", str(tree), *options, "-cf", str(archive), "."]
    subprocess.run(command, check=True, timeout=60)
    return archive


@pytest.mark.skipif(GNU_TAR is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=posix"],
        ["--format=posix", "-S"],
        ["--format=posix", "-S", "--sparse-version=0.1"],
        ["--format=posix", "-S", "--sparse-version=0.0"],
        ["--format=gnu"],
        ["--format=gnu", "-S"],
    ],
    ids=" ".join,
)
def test_formats_of_tar(tmp_path: Path, tree: Path, options: list[str]) -> None:
    if "--format=gnu" in options:
        whole_seconds(tree)
    image = made(tmp_path, tar(tree, tmp_path / "a.tar", *options))
    alike(image, tree_of(tree))
    if "-S" in options:
        assert image.stat().st_blocks * 512 < 8 * MIB


@AS_ROOT
@pytest.mark.skipif(GNU_TAR is None or not shutil.which("setfacl"), reason="needs tar, setfacl")
def test_attributes_lists_and_devices(tmp_path: Path, tree: Path) -> None:
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.chown(tree / "size-1", 1234, 4_000_000_000)
    (tree / "dir").chmod(0o7755)
    os.setxattr(tree / "size-900", "user.x=y", b"\x00\xff\n=\x80")
    os.setxattr(tree / "link", "trusted.link", b"l", follow_symlinks=False)
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(tree / "size-4096", "security.capability", capability)
    subprocess.run(["setfacl", "-m", "u:1000:r,g:5:rw", tree / "size-901"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:root:rwx", tree / "dir"], check=True)
    options = ("--format=posix", "--xattrs", "--xattrs-include=*", "--acls")
    alike(made(tmp_path, tar(tree, tmp_path / "a.tar", *options)), tree_of(tree))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    archive = Archive()
    archive.add("dir/file", b"x" * 10_000)
    path = archive.save(tmp_path / "a")
    path.write_bytes(compress(path.read_bytes()))
    assert tree_in(made(tmp_path, path))["/dir/file"]["size"] == 10_000


def test_zstd_is_read_or_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    assert mkfs(["-q", "-d", str(path), "--size", "64M", str(tmp_path / "image")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "zstd -dc" in said or "not a sound archive" in said


def test_from_standard_input(tmp_path: Path) -> None:
    archive = Archive()
    archive.add("file", b"piped" * 1000)
    data = gzip.compress(archive.save(tmp_path / "a").read_bytes())
    command = [
        sys.executable,
        "-m",
        "mkfs.mkfs",
        "-q",
        "-d",
        "-",
        "--size",
        "64M",
        str(tmp_path / "i"),
    ]
    subprocess.run(command, input=data, check=True, timeout=60)
    assert tree_in(tmp_path / "i")["/file"]["size"] == 5000


def test_the_later_of_two_with_a_name_counts(tmp_path: Path) -> None:
    archive = Archive()
    archive.add("file", b"old" * 5000)
    archive.add("other", type=tarfile.LNKTYPE, linkname="file")
    archive.add("dir/inside", b"stays")
    archive.add("file", b"new")
    archive.add("dir", type=tarfile.DIRTYPE, mode=0o700, mtime=5)
    archive.add("becomes-dir", b"file first")
    archive.add("becomes-dir", type=tarfile.DIRTYPE)
    archive.add("again", type=tarfile.LNKTYPE, linkname="file")
    archive.add("again", type=tarfile.LNKTYPE, linkname="./file")
    archive.add("./", type=tarfile.DIRTYPE, mode=0o711)
    found = tree_in(made(tmp_path, archive.save(tmp_path / "a")))
    assert (found["/other"]["size"], found["/file"]["size"]) == (15000, 3)
    assert found["/file"]["inode"] == found["/again"]["inode"] != found["/other"]["inode"]
    assert (found["/dir"]["mode"], found["/dir"]["mtime"]) == ("40700", [5, 0])
    assert found["/becomes-dir"]["mode"].startswith("4")
    assert found["/"]["mode"] == "40711"


def test_names_are_taken_as_tar_takes_them(tmp_path: Path) -> None:
    archive = Archive()
    for name in ("./a", "/absolute", "x//y/./z", "d/"):
        archive.add(name, type=tarfile.DIRTYPE if name == "d/" else tarfile.REGTYPE)
    found = tree_in(made(tmp_path, archive.save(tmp_path / "a")))
    assert set(found) == {"/", "/a", "/absolute", "/x", "/x/y", "/x/y/z", "/d"}


def test_times_to_the_nanosecond(tmp_path: Path) -> None:
    archive = Archive()
    texts = {
        "0.000000001": [0, 1],
        "-1.5": [-2, 5 * 10**8],
        "99999999999.123456789": [99999999999, 123456789],
    }
    for text in texts:
        archive.add(text, pax_headers={"mtime": text})
    archive.add("float", mtime=1.5)
    found = tree_in(made(tmp_path, archive.save(tmp_path / "a")))
    assert {text: found[f"/{text}"]["mtime"] for text in texts} == texts
    assert found["/float"]["mtime"] == [1, 5 * 10**8]


def test_attributes_as_libarchive_writes_them(tmp_path: Path) -> None:
    archive = Archive()
    archive.add(
        "a",
        pax_headers={"LIBARCHIVE.xattr.user.x": base64.b64encode(b"\0\xff").decode().rstrip("=")},
    )
    archive.add(
        "b",
        pax_headers={"SCHILY.acl.access": "user::rw-,user:7:r--:7,group::r--,mask::r--,other::---"},
    )
    archive.add("c", pax_headers={"SCHILY.xattr.system.nfs4_acl": "x", "comment": "ignored"})
    found = tree_in(made(tmp_path, archive.save(tmp_path / "a")))
    assert base64.b64decode(found["/a"]["xattrs"]["user.x"]) == b"\0\xff"
    assert found["/b"]["mode"] == "100640"
    assert set(found["/b"]["xattrs"]) == {"system.posix_acl_access"}
    assert "xattrs" not in found["/c"]


# --- what goes wrong ----------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "../out": ({}, "leads out of the archive"),
    "a/../../out": ({}, "leads out of the archive"),
    "link": (
        {"type": tarfile.LNKTYPE, "linkname": "missing"},
        "a link to missing, which is not there",
    ),
    "empty-link": ({"type": tarfile.SYMTYPE}, "empty link target"),
    "file/below": ({}, "file is not a directory"),
    "sym/below": ({}, "sym is not a directory"),
    "odd": ({"type": b"M"}, "type b'M' cannot be kept"),
    "n" * 300: ({}, "a name of 300 bytes"),
    "owner": ({"uid": 2**32 - 1}, "owner 4294967295:0 is none"),
    "null": ({"type": tarfile.CHRTYPE, "devmajor": 5000, "devminor": 1}, "device 5000:1 is none"),
    "time": ({"pax_headers": {"mtime": "soon"}}, "time 'soon' is none"),
    "time-too": ({"pax_headers": {"atime": "1e999999"}}, "is none"),
    "acl": (
        {"pax_headers": {"SCHILY.acl.access": "user:rwx"}},
        "no entry of an access control list",
    ),
    "acl-odd": ({"pax_headers": {"SCHILY.acl.access": "user::rwx"}}, "breaks the rules"),
    "acl-default": (
        {"pax_headers": {"SCHILY.acl.default": "user::rwx,group::r-x,other::r-x"}},
        "is not a directory",
    ),
    "xattr": ({"pax_headers": {"SCHILY.xattr.user." + "x" * 300: "v"}}, "an attribute name of"),
    "value": ({"pax_headers": {"SCHILY.xattr.user.x": "v" * 65537}}, "an attribute value of"),
    "size": ({"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}}, "sound archive"),
    "map": (
        {"pax_headers": {"GNU.sparse.map": "9,5,3,2", "GNU.sparse.size": "20"}},
        "map of holes",
    ),
    "map-odd": ({"pax_headers": {"GNU.sparse.map": "x", "GNU.sparse.size": "20"}}, "sound archive"),
    "base64": ({"pax_headers": {"LIBARCHIVE.xattr.user.x": "!"}}, "is not base64"),
}


@pytest.mark.parametrize("name", BAD, ids=[name[:12] for name in BAD])
def test_members_that_are_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fields, says = BAD[name]
    archive = Archive()
    archive.add("file", b"x")
    archive.add("sym", type=tarfile.SYMTYPE, linkname=".")
    archive.add(name, **fields)
    path = archive.save(tmp_path / "a.tar")
    image = tmp_path / "image"
    assert mkfs(["-q", "-d", str(path), "--size", "64M", str(image)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"mkfs.nvmefs: {path}")
    assert says in said
    assert said.count("\n") == 1
    assert not image.exists()


def test_a_directory_that_is_full_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Archive()
    archive.add("dir/file")
    archive.add("dir", b"a file")
    path = archive.save(tmp_path / "a.tar")
    assert mkfs(["-q", "-d", str(path), "--size", "64M", str(tmp_path / "image")]) == 1
    assert "dir: directory" in capsys.readouterr().err


def test_damaged_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut anywhere, or with bytes changed: one line, or a filesystem; never a traceback."""
    archive = Archive(tarfile.GNU_FORMAT)
    for index in range(5):
        archive.add(f"{index}" * 110, random.Random(index).randbytes(3000))
    whole = archive.save(tmp_path / "a").read_bytes()
    packed = gzip.compress(whole)
    rng = random.Random(1)
    broken = [whole[:at] for at in (0, 1, 511, 512, 700, 2000, 10000, len(whole) // 1024 * 512)]
    broken = [each for each in broken if not each.endswith(bytes(1024))]
    broken += [packed[:at] for at in (1, 5, 15, len(packed) // 2, len(packed) - 1)]
    path, image = tmp_path / "broken", tmp_path / "image"
    words = ["-q", "-d", str(path), "--size", "64M", str(image)]
    for each in broken:
        path.write_bytes(each)
        assert mkfs(words) == 1, len(each)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "not a sound archive" in said
        assert not image.exists()
    for _ in range(30):
        data = bytearray(packed if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(min(len(data), 5 * BLOCK_BYTES))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        code = mkfs(words)
        assert code in (0, 1)
        assert capsys.readouterr().err.count("\n") == code
        assert image.exists() is not bool(code)
        image.unlink(missing_ok=True)


# --- access control lists -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user::rw-,group::r--,other::---", [(1, 6), (4, 4), (32, 0)]),
        ("u::rwx\ng::r-x\no::r-x\n", [(1, 7), (4, 5), (32, 5)]),
        ("user::rwx,user:7:r--,group::r-x,group:9:-w-,mask:rwx,other:r-x # old",
         [(1, 7), (2, 4, 7), (4, 5), (8, 2, 9), (16, 7), (32, 5)]),
        ("other::r--,mask::r--,group::r--,user:root:r--,user:5:r--,user::r--",
         [(1, 4), (2, 4, 0), (2, 4, 5), (4, 4), (16, 4), (32, 4)]),
        ("user::r--,user:nobody-knows:r--:77,group::r--,mask::r--,other::r--",
         [(1, 4), (2, 4, 77), (4, 4), (16, 4), (32, 4)]),
    ],
)  # fmt: skip
def test_lists_in_words(text: str, expected: list[tuple[int, ...]]) -> None:
    assert acl.decode(parse_acl(text, "x")) == [AclEntry(*entry) for entry in expected]


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(ToolError, match="whom nobody here knows"):
        parse_acl("user::r--,user:nobody-knows:r--,group::r--,mask::r--,other::r--", "x")
