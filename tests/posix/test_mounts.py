"""The filesystem below other mounts: both layers of an overlay, bind mounts, user namespaces, mount options."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EXDEV
from pathlib import Path

import pytest

from tests.mount.conftest import run
from tests.posix.calls import linkat
from tests.posix.checks import ALICE, Checks, make

pytestmark = pytest.mark.quick


@contextmanager
def mounted(*arguments: str) -> Iterator[None]:
    """mount(8) with these arguments, the last of which is the directory; unmounted at the end."""
    run("mount", *arguments)
    try:
        yield
    finally:
        run("umount", arguments[-1])


@contextmanager
def overlay() -> Iterator[None]:
    """Both layers are directories here; seen at "merged"."""
    for name in ("lower", "upper", "work", "merged"):
        os.makedirs(name, exist_ok=True)
    with mounted(
        "-t", "overlay", "overlay", "-o", "lowerdir=lower,upperdir=upper,workdir=work", "merged"
    ):
        yield


def _is_whiteout(path: str) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and not status.st_rdev


def test_overlay(checks: Checks) -> None:
    os.makedirs("lower/d/sub")
    for name in ("f", "g", "d/h", "d/sub/i"):
        Path(f"lower/{name}").write_text(f"low {name}")
    os.setxattr("lower/f", "user.a", b"v")
    os.chown("lower/f", ALICE.uid, ALICE.gid)
    with overlay():
        merged = Path("merged")
        checks.gives("low d/sub/i", (merged / "d/sub/i").read_text)
        with (merged / "f").open("a") as file:
            file.write(" and up")
        checks.gives("low f and up", (merged / "f").read_text)
        checks.gives(b"v", os.getxattr, "upper/f", "user.a")
        checks.gives(ALICE.uid, lambda: os.stat("upper/f").st_uid)
        checks.works(os.unlink, "merged/g")
        checks.gives(True, _is_whiteout, "upper/g")
        checks.works(os.rename, "merged/f", "merged/new")
        checks.gives(True, _is_whiteout, "upper/f")
        checks.fails((0, EXDEV), os.rename, "merged/d", "merged/e")
        run("rm", "-rf", "merged/d")
        checks.works(os.makedirs, "merged/d/again")
        checks.gives(["again"], lambda: sorted(os.listdir("merged/d")))
        checks.works(linkat, "merged/new", "merged/link")
        checks.gives(2, lambda: os.stat("merged/new").st_nlink)
        checks.works(os.mkfifo, "merged/fifo")
        checks.works(os.symlink, "new", "merged/symlink")
    checks.gives(["d", "f", "g"], lambda: sorted(os.listdir("lower")))
    checks.gives("low f", Path("lower/f").read_text)
    with overlay():
        checks.gives("low f and up", Path("merged/new").read_text, what="once more")
        checks.gives(["again"], lambda: sorted(os.listdir("merged/d")))
        names = ["d", "fifo", "link", "new", "symlink"]
        checks.gives(names, lambda: sorted(set(os.listdir("merged")) - {"e"}))


def test_bind_mounts(checks: Checks) -> None:
    os.mkdir("origin")
    os.mkdir("seen")
    make("file", "origin/f")
    with mounted("--bind", "origin", "seen"):
        checks.gives(os.stat("origin/f").st_ino, lambda: os.stat("seen/f").st_ino)
        checks.fails(EXDEV, os.rename, "seen/f", "origin/g", what="two mounts")
        checks.fails(EXDEV, linkat, "seen/f", "origin/g")
        checks.touches({"origin": "mc", "seen": "mc"}, make, "file", "seen/g")
        checks.works(os.unlink, "origin/f")
        checks.gives(["g"], os.listdir, "seen")


def test_options_of_a_mount(checks: Checks) -> None:
    os.mkdir("seen")
    Path("program").write_bytes(Path("/bin/true").read_bytes())
    os.chmod("program", 0o755)
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with mounted("--bind", ".", "seen"):
        checks.works(lambda: subprocess.run(["seen/program"], check=True))
        run("mount", "-o", "remount,bind,noexec,nodev", "seen")
        checks.fails(EACCES, lambda: subprocess.run(["seen/program"], check=True))
        checks.fails(EACCES, os.open, "seen/null", os.O_RDONLY)
        checks.works(lambda: os.close(os.open("null", os.O_RDONLY)))


def test_user_namespace(checks: Checks) -> None:
    """Who is root only in a namespace of his own has the rights of who he is outside."""
    make("dir", "open", 0o777)
    make("file", "roots", 0o600)
    script = "id -u; echo x > open/mine; cat roots; chown 7 open/mine; stat -c %u open/mine roots"
    done = subprocess.run(
        ["setpriv", f"--reuid={ALICE.uid}", f"--regid={ALICE.gid}", "--clear-groups",
         "unshare", "--user", "--map-root-user", "sh", "-c", script],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    checks.gives(["0", "0", "65534"], done.stdout.split)
    checks.true(done.stderr.count("denied") + done.stderr.count("Invalid") == 2, done.stderr)
    checks.gives((ALICE.uid, ALICE.gid), lambda: _owner("open/mine"))


def _owner(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_uid, status.st_gid
