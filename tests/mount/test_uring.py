"""-o frontend=uring: what is said where it cannot be had, its threads and queues, and resets under load."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmefs.rings import PARAMETER, Plan, possible_cpus
from tests.mount.conftest import Mount, counted, faulty, run
from tests.support.uring import NEEDS_URING, offered

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]
NewMount = Callable[..., Mount]
PAGE = 4096

READER = """
import errno, os, sys
data = [bytes([index]) * 4096 for index in range(64)]
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(file, b"".join(data), 0)
os.fsync(file)
for round in range(20):
    for index in range(64):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            assert os.pread(file, 4096, index * 4096) == data[index]
        except OSError as error:
            assert error.errno == errno.EIO
"""


@NEEDS_URING
def test_what_is_missing_is_said_with_its_cure(new_mount: NewMount) -> None:
    mount = new_mount(size="64M", mount=False)
    with offered(False):
        done = run(*mount.command(options="frontend=uring"), check=False)
    assert done.returncode == 32
    assert done.stderr.splitlines() == [
        f"nvmefs: {mount.path}: frontend=uring: the kernel does not offer it; let it: echo Y > {PARAMETER}"
    ]
    assert not mount.mounted


@NEEDS_URING
def test_auto_does_not_need_it(new_mount: NewMount) -> None:
    with offered():
        mount = new_mount(size="64M", options="frontend=auto")
    (mount.path / "file").write_text("x")
    mount.unmount()
    assert not counted(mount, "init_flags") >> 41 & 1


@NEEDS_URING
@pytest.mark.parametrize(("queues", "threads"), [(2, 2), (4, 1)])
def test_a_thread_has_the_queues_of_several_cpus(
    new_mount: NewMount, queues: int, threads: int
) -> None:
    """Because the drive grants no more queue pairs, or because that is asked for."""
    mount = faulty(new_mount, options=f"frontend=uring,threads={threads}", queues=queues)
    cpus = os.sched_getaffinity(0)
    for cpu in cpus:
        path = mount.path / f"file{cpu}"
        run("taskset", "-c", str(cpu), "cp", "/bin/true", path)
        assert path.read_bytes() == Path("/bin/true").read_bytes()
    mount.unmount()


@NEEDS_URING
def test_each_cpu_has_a_thread_of_its_own(new_mount: NewMount) -> None:
    mount = new_mount(size="64M", options="frontend=uring")
    bound = [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{mount.pid}/task")]
    allowed = os.sched_getaffinity(mount.pid)
    if len(allowed) > 1:
        for cpu in allowed:
            assert {cpu} in bound


@NEEDS_URING
def test_it_runs_where_the_process_may(new_mount: NewMount) -> None:
    mount = new_mount(size="64M", mount=False)
    last = max(os.sched_getaffinity(0))
    with offered():
        run("taskset", "-c", str(last), *mount.command(options="frontend=uring"))
    mount.pid = int(mount.logged().split("nvmefs[")[1].split("]")[0])
    (mount.path / "file").write_bytes(bytes(1 << 20))
    assert (mount.path / "file").read_bytes() == bytes(1 << 20)
    for task in os.listdir(f"/proc/{mount.pid}/task"):
        assert os.sched_getaffinity(int(task)) == {last}
    mount.unmount()


@NEEDS_URING
def test_more_requests_with_python_than_entries(new_mount: NewMount) -> None:
    """The kernel has the others wait; all are answered, each with its own answer."""
    mount = new_mount(size="256M", options="frontend=uring")
    entries = Plan.for_queues(possible_cpus(), possible_cpus()).entries * possible_cpus()
    wrong: list[str] = []

    def work(index: int) -> None:
        path = mount.path / f"file{index}"
        for round_ in range(3):
            content = b"%d %d " % (index, round_) * 500
            with path.open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            if path.read_bytes() != content or path.stat().st_size != len(content):
                wrong.append(path.name)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(entries + 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(80)
        assert not thread.is_alive()
    assert not wrong
    mount.unmount()


@NEEDS_URING
def test_data_moves_while_many_requests_are_with_python(new_mount: NewMount) -> None:
    """More than all entries in DMA memory of the one queue that all of it goes through."""
    mount = faulty(new_mount, "q1:write delay=300ms", options="frontend=uring")
    cpu = {min(os.sched_getaffinity(0))}
    count = Plan.for_queues(possible_cpus(), possible_cpus()).entries + 30
    (mount.path / "data").write_bytes(b"".join(bytes([block]) * PAGE for block in range(16)))
    data = os.open(mount.path / "data", os.O_RDWR | os.O_DIRECT)
    os.fsync(data)
    waiting = [os.open(mount.path / f"w{index}", os.O_CREAT | os.O_RDWR) for index in range(count)]
    begun, done, reads = threading.Barrier(count + 1), [0] * count, [0]
    wrong: list[int] = []

    def sync(index: int) -> None:
        os.sched_setaffinity(0, cpu)
        os.write(waiting[index], bytes(5000))
        begun.wait(30)
        os.fsync(waiting[index])
        done[index] = 1

    def read() -> None:
        os.sched_setaffinity(0, cpu)
        with mmap.mmap(-1, PAGE) as memory:
            for block in range(8):  # published by then
                os.preadv(data, [memory], block * PAGE)
            begun.wait(30)
            time.sleep(0.1)  # all have asked
            while not any(done):
                block = reads[0] % 16
                os.preadv(data, [memory], block * PAGE)
                wrong.extend([block] if memory[:] != bytes([block]) * PAGE else [])
                os.pwritev(data, [memory], block * PAGE)
                reads[0] += 1

    threads = [threading.Thread(target=sync, args=(index,)) for index in range(count)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for descriptor in (data, *waiting):
        os.close(descriptor)
    mount.unmount()
    assert reads[0] > 50
    assert not wrong


@NEEDS_URING
def test_names_of_all_lengths_and_listings(new_mount: NewMount) -> None:
    """Names are the payload here, and a request may have two, or a name and a value."""
    mount = new_mount(size="64M", options="frontend=uring")
    for length in (1, 2, 87, 128, 255):
        name = "n" * length
        (mount.path / name).write_text(name)
        os.rename(mount.path / name, mount.path / name[::-1].replace("n", "m"))
        os.symlink("t" * length, mount.path / name)
        assert os.readlink(mount.path / name) == "t" * length
        os.setxattr(mount.path / ("m" * length), "user." + name[:250], b"v" * length)
        assert os.getxattr(mount.path / ("m" * length), "user." + name[:250]) == b"v" * length
    assert len(os.listdir(mount.path)) == 10
    mount.unmount()


@NEEDS_URING
def test_a_reset_under_load(new_mount: NewMount) -> None:
    """Commands of both threads are lost now and then: right data or EIO, and the mount lives on."""
    mount = faulty(
        new_mount, "q2:read every=300 limit=2 drop", "q3:read every=300 limit=2 drop",
        options="frontend=uring",
    )  # fmt: skip
    work = [
        subprocess.Popen(["python3", "-c", READER, mount.path / f"file{index}"])
        for index in range(3)
    ]
    assert [process.wait(80) for process in work] == [0, 0, 0]
    (mount.path / "after").write_text("lives")
    mount.unmount()
    assert counted(mount, "timeouts")
    assert counted(mount, "lost") == 0


def test_entries_for_machines_of_all_sizes() -> None:
    """Each queue has an entry at least, whatever number of threads there is."""
    for queues in range(1, 300):
        for granted in (1, 2, 7, 16):
            plan = Plan.for_queues(queues, granted)
            assert plan.threads <= min(queues, granted)
            assert plan.entries >= -(-queues // plan.threads)
            assert plan.threads * plan.entries <= max(120, 4 * queues + 64)
