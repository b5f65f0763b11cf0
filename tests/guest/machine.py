"""One guest: QEMU without KVM, the host's root read-only under an overlay, NVMe behind an IOMMU.

    with Machine(kernel, console=path, controllers=[Controller("c0", [Namespace(image)])]) as machine:
        machine.run(["uname", "-r"])         a program in the guest: agent.py
        machine.qmp("query-pci")             a word with QEMU

Nothing outlives it: QEMU and virtiofsd are killed by the kernel with the thread that started them
(PR_SET_PDEATHSIG), and the sockets between them are inherited or have no name in any directory.
Every wait is bounded.

Below: kernels.py, agent.py (which runs in the guest), QEMU, virtiofsd. Above: guest.py.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from driver.transports import qemu

from .kernels import Kernel

BOOT_BOUND_S = 120.0
ANSWER_BOUND_S = 60.0
NULL, NULL_BYTES = Path("/dev/null"), 1 << 30
_END_BOUND_S = 10.0
LOOK_EVERY_S = 0.05
_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
_CONSOLE_TAIL = 6000
_WORDS_BOUND = 1 << 16


class GuestError(Exception):
    """The guest, or QEMU, did not do what was asked."""


@dataclass(frozen=True)
class Namespace:
    """A namespace of QEMU's: a raw image, and properties of the device `nvme-ns`. NULL for an image
    is NULL_BYTES that read as zeroes in no time.
    """

    image: Path
    properties: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Controller:
    """A controller of QEMU's behind a root port of its own: properties of the device `nvme`. Its
    name is its serial number, too.
    """

    name: str
    namespaces: Sequence[Namespace]
    properties: dict[str, str | int] = field(default_factory=dict)


def missing() -> str:
    """Why no guest can be started here, with the cure, or ""."""
    if reason := qemu.missing():
        return reason
    if os.geteuid() != 0:
        return "sharing the root with a guest (virtiofsd) takes root"
    if virtiofsd() is None:
        return "virtiofsd is not installed: apt-get install qemu-system-common (or virtiofsd)"
    return ""


def virtiofsd() -> str | None:
    """Where it is."""
    return next(
        (path for path in _VIRTIOFSD if os.access(path, os.X_OK)), shutil.which("virtiofsd")
    )


class Lines:
    """JSON, a value in a line, on a stream socket."""

    def __init__(self, ours: socket.socket, label: str) -> None:
        self._socket = ours
        self._label = label
        self._rest = b""

    def send(self, value: object) -> None:
        """Raises GuestError when the other end has gone."""
        try:
            self._socket.settimeout(ANSWER_BOUND_S)
            self._socket.sendall(json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise GuestError(f"{self._label} takes nothing: {error}") from error

    def receive(self, bound_s: float) -> Any:
        """The next value. Raises GuestError at the end of the stream or of the time."""
        end = time.monotonic() + bound_s
        while b"\n" not in self._rest:
            try:
                self._socket.settimeout(max(0.001, end - time.monotonic()))
                more = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise GuestError(f"{self._label}: no answer for {bound_s:.0f} s") from error
            except OSError as error:
                raise GuestError(f"{self._label} has gone: {error}") from error
            if not more:
                raise GuestError(f"{self._label} has gone")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Closes our end."""
        self._socket.close()


class Machine:
    """A running guest whose agent has answered. Raises GuestError with the end of its console."""

    def __init__(
        self,
        kernel: Kernel,
        console: Path,
        controllers: Sequence[Controller] = (),
        *,
        ports: int = 8,
        iommu: bool = True,
        memory_mib: int = 1536,
        processors: int = 2,
        append: str = "",
        program: str = qemu.QEMU,
        more: Sequence[str] = (),
    ) -> None:
        """ports: root ports, of which the first ones are the controllers' and the others free.
        iommu: whether the machine has one. append: more words for the kernel; more: for QEMU, which
        is `program`.
        """
        self.kernel = kernel
        self.console = console
        self.controllers = {controller.name: controller for controller in controllers}
        self._nodes = {controller.name: f"{controller.name}-1" for controller in controllers}
        self._plugged = itertools.count()
        self._stack = ExitStack()
        self._words = os.memfd_create("guest-words", os.MFD_CLOEXEC)
        self._processes: list[subprocess.Popen[bytes]] = []
        hardware = [
            *_board(memory_mib, processors, iommu, ports),
            *("-kernel", str(kernel.image), "-initrd", str(kernel.initrd)),
            *("-append", _command_line(iommu, append)),
        ]
        for number, controller in enumerate(controllers):
            hardware += _controller_words(controller, f"rp{number}")
        try:
            self._start_all([program, *hardware, *more])
        except BaseException as error:
            end = self.last_words()
            self.close()
            if isinstance(error, GuestError):
                raise GuestError(f"{error}\n{end}") from error
            raise

    def _start_all(self, words: Sequence[str]) -> None:
        self._qmp, their_qmp = self._pair("QEMU")
        self._agent, their_agent = self._pair("the guest's agent")
        share = self._start_virtiofsd()
        ways = (
            f"-chardev socket,id=qmp,fd={their_qmp.fileno()} -mon chardev=qmp,mode=control "
            "-device virtio-serial-pci "
            f"-chardev socket,id=agent,fd={their_agent.fileno()} "
            "-device virtserialport,chardev=agent,name=agent "
            f"-chardev socket,id=root,path={share},abstract=on "
            "-device vhost-user-fs-pci,chardev=root,tag=root"
        ).split()
        console = ["-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console"]
        self._start([*words, *ways, *console], [their_qmp, their_agent])
        self._qmp.receive(ANSWER_BOUND_S)  # the greeting
        self.qmp("qmp_capabilities")
        if self._agent.receive(BOOT_BOUND_S) != {"id": 0}:
            raise GuestError("the guest's agent does not begin as it should")

    def _pair(self, label: str) -> tuple[Lines, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.callback(theirs.close)
        lines = Lines(ours, label)
        self._stack.callback(lines.close)
        return lines, theirs

    def _start_virtiofsd(self) -> str:
        """Shares the host's root; the abstract name of its socket."""
        name = f"nvmefs-guest-{os.getpid()}-{id(self):x}"
        server = virtiofsd()
        if server is None:
            raise GuestError(missing())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"\0{name}")
            listener.listen(1)
            options = "-o source=/ -o cache=always -o sandbox=chroot -o no_writeback"
            words = f"{server} -f --fd={listener.fileno()} {options}".split()
            self._start(words, [listener])
        return name

    def _start(self, words: Sequence[str], sockets: Sequence[socket.socket]) -> None:
        self._processes.append(
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                pass_fds=[end.fileno() for end in sockets],
            )
        )
        for end in sockets:
            end.close()

    @property
    def pids(self) -> list[int]:
        """Of virtiofsd and QEMU."""
        return [process.pid for process in self._processes]

    def qmp(self, command: str, **arguments: object) -> Any:
        """What QEMU returns; events on the way to it are passed over. Raises GuestError with its words."""
        self._qmp.send({"execute": command, "arguments": arguments})
        while True:
            answer = self._qmp.receive(ANSWER_BOUND_S)
            if "error" in answer:
                raise GuestError(f"QEMU: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def add_controller(self, controller: Controller, port: int) -> None:
        """Plugs one in, with a single namespace. Raises GuestError."""
        (namespace,) = controller.namespaces
        # QEMU 7.2 does not let go of a node that an unplugged nvme has had: each time another one.
        self._nodes[controller.name] = node = f"plugged-{next(self._plugged)}"
        self.qmp("blockdev-add", **_image(node, namespace.image, locking="off"))
        properties = {**namespace.properties, **controller.properties}
        self.qmp(
            "device_add",
            driver="nvme",
            id=controller.name,
            serial=controller.name,
            bus=f"rp{port}",
            drive=node,
            **properties,
        )

    def remove_controller(self, name: str, bound_s: float = ANSWER_BOUND_S) -> None:
        """Unplugs one, and waits until it is gone: until the guest has let it go."""
        self.qmp("device_del", id=name)
        self.wait_unplugged(name, bound_s)

    def wait_unplugged(self, name: str, bound_s: float = ANSWER_BOUND_S) -> None:
        """Waits until the guest has let go of a device, and QEMU has taken it away. Raises GuestError.

        Not for the event DEVICE_DELETED: it tells that nothing inside QEMU refers to the device any
        more, and for one that was unplugged under load QEMU 7.2 sometimes never sends it.
        """
        end = time.monotonic() + bound_s
        path = "/machine/peripheral"
        while any(part["name"] == name for part in self.qmp("qom-list", path=path)):
            if time.monotonic() > end:
                raise GuestError(f"QEMU: the guest has not let go of {name} in {bound_s:.0f} s")
            time.sleep(LOOK_EVERY_S)

    def reads(self, name: str) -> int:
        """Reads that a controller with a single namespace has done; 0 when there is none."""
        for drive in self.qmp("query-blockstats"):
            if drive.get("node-name") == self._nodes[name]:
                return int(drive["stats"]["rd_operations"])
        return 0

    @property
    def agent(self) -> Lines:
        """The way to agent.py."""
        return self._agent

    def last_words(self) -> str:
        """The end of the console, and what QEMU and virtiofsd have said."""
        said = os.pread(self._words, _WORDS_BOUND, 0).decode("utf-8", "replace")
        console = ""
        if self.console.exists():
            console = self.console.read_text(encoding="utf-8", errors="replace")[-_CONSOLE_TAIL:]
        return f"--- QEMU, virtiofsd ---\n{said}--- {self.console} ---\n{console}"

    def close(self) -> None:
        """Ends the guest at once, as pulling the plug does. Idempotent."""
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait(_END_BOUND_S)
        self._processes = []
        self._stack.close()
        if self._words >= 0:
            os.close(self._words)
        self._words = -1

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()


def _board(memory_mib: int, processors: int, iommu: bool, ports: int) -> list[str]:
    words = (
        f"-accel tcg,thread=multi -cpu max -smp {processors} -m {memory_mib}M "
        "-machine q35,kernel-irqchip=split,memory-backend=ram "
        f"-object memory-backend-memfd,id=ram,size={memory_mib}M,share=on "
        "-display none -nodefaults -no-user-config -no-reboot"
    ).split()
    if iommu:
        words += ["-device", "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"]
    for number in range(ports):
        where = f"id=rp{number},bus=pcie.0,chassis={number + 1},slot={number + 1}"
        words += ["-device", f"pcie-root-port,{where}"]
    return words


def _command_line(iommu: bool, append: str) -> str:
    agent = Path(__file__).with_name("agent.py")
    # On a busy host the timer's interrupts come late, and the kernel would take them for missing.
    words = "console=ttyS0 panic=-1 loglevel=5 printk.devkmsg=on random.trust_cpu=on"
    words += " tsc=reliable no_timer_check"
    if iommu:
        words += " intel_iommu=on"
    return f"{words} {append} -- {os.path.realpath(sys.executable)} -S {agent}"


def _image(node: str, path: Path, locking: str = "auto") -> dict[str, object]:
    if path == NULL:
        return {"driver": "null-co", "node-name": node, "size": NULL_BYTES, "read-zeroes": True}
    file = {"driver": "file", "filename": str(path), "locking": locking}
    return {"driver": "raw", "node-name": node, "file": file, "discard": "unmap"}


def _controller_words(controller: Controller, port: str) -> list[str]:
    """Arguments for one that is there from the beginning, with any number of namespaces."""
    name = controller.name
    more = "".join(f",{key}={value}" for key, value in controller.properties.items())
    words = ["-device", f"nvme,id={name},serial={name},bus={port}{more}"]
    for nsid, namespace in enumerate(controller.namespaces, 1):
        node = f"{name}-{nsid}"
        more = "".join(f",{key}={value}" for key, value in namespace.properties.items())
        words += ["-blockdev", json.dumps(_image(node, namespace.image))]
        words += ["-device", f"nvme-ns,bus={name},drive={node},nsid={nsid}{more}"]
    return words
