"""Opening an image: the lock, what is refused and how it is said, a host that runs out of space."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from driver.embedded import image as image_module
from driver.errors import DeviceBusy, TransportError
from driver.transports.embedded import open_embedded
from tests.driver.embedded.harness import FUA, IOVA, PAGE, READ, WRITE, WRITE_ZEROES, Host, rw

CAPACITY_EXCEEDED = 0x081
HOLD = """
import sys
from driver.transports.embedded import open_embedded
transport = open_embedded(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(image: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the image open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_process_is_refused_by_name(holder: subprocess.Popen[str], image: Path) -> None:
    with pytest.raises(DeviceBusy) as refusal:
        open_embedded(image)
    message = str(refusal.value)
    assert re.search(rf"in use by process {holder.pid} \(python[\d.]*\)", message)
    assert "\n" not in message
    holder.kill()
    holder.wait(10)
    open_embedded(image).close()


@pytest.fixture
def block_device(image: Path) -> Iterator[str]:
    """A block device whose medium is the image."""
    if os.geteuid() != 0:
        pytest.skip("only root makes loop devices")
    made = subprocess.run(
        ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.mount
def test_a_block_device_that_the_kernel_has_mounted(block_device: str, tmp_path: Path) -> None:
    """Each keeps the other away from it; reading it alone does not."""
    there = tmp_path / "there"
    there.mkdir()
    mount = ["mount", "-t", "ext4", block_device, str(there)]
    subprocess.run(["mkfs.ext4", "-q", "-F", block_device], check=True)
    subprocess.run(mount, check=True)
    try:
        with pytest.raises(DeviceBusy, match=f"mounted at {there}; umount {there}$"):
            open_embedded(block_device)
        open_embedded(block_device, read_only=True).close()
    finally:
        subprocess.run(["umount", there], check=True)
    transport = open_embedded(block_device)
    refused = subprocess.run(mount, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "busy" in refused.stderr or "already mounted" in refused.stderr
    with pytest.raises(DeviceBusy, match="in use by this process itself"):
        open_embedded(block_device)
    transport.close()
    open_embedded(block_device).close()


@pytest.mark.mount
def test_a_file_behind_a_loop_device(block_device: str, image: Path) -> None:
    """Nothing is locked or opened: the kernel alone knows. To read it is harmless."""
    other_name = image.with_name("other name.img")
    os.link(image, other_name)
    for path in (image, other_name):
        with pytest.raises(
            DeviceBusy, match=f": attached to {block_device}; losetup -d {block_device}$"
        ):
            open_embedded(path)
    open_embedded(image, read_only=True).close()


@pytest.mark.mount
def test_the_kernel_really_swaps_to_it(image: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may swap")
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o600)
    subprocess.run(["mkswap", image], check=True, capture_output=True)
    made = subprocess.run(["swapon", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no swap here: {made.stderr.strip()}")
    try:
        with pytest.raises(DeviceBusy, match="in use as swap; swapoff"):
            open_embedded(image)
    finally:
        subprocess.run(["swapoff", image], check=True)
    open_embedded(image).close()


def test_holder_without_proc_locks(
    holder: subprocess.Popen[str], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_module, "_holder_from_locks", lambda status: None)
    with pytest.raises(DeviceBusy, match=f"process {holder.pid} "):
        open_embedded(image)
    monkeypatch.setattr(image_module, "_holder_from_descriptors", lambda status: None)
    with pytest.raises(DeviceBusy, match="cannot be seen"):
        open_embedded(image)


def test_twice_in_one_process(image: Path) -> None:
    first = open_embedded(image)
    with pytest.raises(DeviceBusy, match="in use by this process itself"):
        open_embedded(image)
    with pytest.raises(DeviceBusy):
        open_embedded(image, read_only=True)
    first.close()
    open_embedded(image).close()


def test_readers_share(image: Path) -> None:
    first, second = (open_embedded(image, read_only=True) for _ in range(2))
    with pytest.raises(DeviceBusy):
        open_embedded(image)
    first.close()
    second.close()


def test_refusals(tmp_path: Path, image: Path) -> None:
    empty, small = tmp_path / "empty.img", tmp_path / "small.img"
    empty.touch()
    small.write_bytes(b"x" * 600)
    for path, options, reason in [
        (tmp_path / "absent.img", {}, "no such image"),
        (tmp_path, {}, "a directory"),
        (tmp_path, {"read_only": True}, "neither a regular file nor a block device"),
        (Path("/dev/null"), {}, "neither a regular file nor a block device"),
        (empty, {}, "is empty"),
        (small, {"lba_size": 4096}, "smaller than one block"),
        (Path("null:"), {}, "a size is missing"),
        (Path("null:12Q"), {}, "a size is missing"),
        (image, {"lba_size": 1024}, "lba_size=1024"),
        (small, {"mdts": 5000}, "mdts=5000"),
        (small, {"mdts": 4096}, "mdts=4096"),
        (small, {"queues": 0}, "queues=0"),
        (small, {"queues": 512}, "queues=512"),
        (small, {"vectors": 0}, "vectors=0"),
        (small, {"queue_entries": 1}, "queue_entries=1"),
    ]:
        with pytest.raises(TransportError, match=reason) as refusal:
            open_embedded(path, **options)  # type: ignore[arg-type]
        assert "\n" not in str(refusal.value)
    open_embedded(small).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_no_permission(image: Path) -> None:
    image.chmod(0o600)
    image.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(TransportError, match=r"no such image|Permission denied"):
            open_embedded(image)
    finally:
        os.seteuid(0)


def test_address_is_what_the_user_wrote(image: Path) -> None:
    transport = open_embedded(image, address="file:disk.img")
    assert (transport.name, transport.address) == ("embedded", "file:disk.img")
    transport.close()
    with pytest.raises(TransportError, match=r"^file:disk\.img: "):
        transport.read32(0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    point = tmp_path / "tmpfs"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "nvmefs-test", str(point)]
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    done = subprocess.run(mount, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True, timeout=20)


def test_no_space_on_the_host_is_capacity_exceeded(
    make_host: Callable[..., Host], small_disk: Path
) -> None:
    path = small_disk / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    host = make_host(str(path), lba_size=4096)
    try:
        queue = host.start()
        at = host.memory.take(PAGE)
        host.memory.map[at : at + PAGE] = b"x" * PAGE
        statuses = []
        for lba in range(400):
            reply = queue.run(rw(WRITE, lba, 1, prp1=IOVA + at, bits=FUA if lba % 2 else 0))
            statuses.append(reply.status)
            assert not reply.dnr, "space may come back"
        assert set(statuses) == {0, CAPACITY_EXCEEDED}
        written = statuses.index(CAPACITY_EXCEEDED)
        assert 100 < written < 300
        assert queue.run(rw(WRITE_ZEROES, 5000, 500)).status == CAPACITY_EXCEEDED
        assert queue.run(rw(READ, written - 1, 1, prp1=IOVA + at)).status == 0
        assert host.memory.map[at : at + PAGE] == b"x" * PAGE
        assert queue.run(rw(WRITE_ZEROES, 0, written, bits=1 << 25)).status == 0
        assert queue.run(rw(WRITE, 0, 1, prp1=IOVA + at)).status == 0, "there is space again"
        assert host.transport.statistics()["media_errors"] == statuses.count(CAPACITY_EXCEEDED) + 1
    finally:
        host.close()
