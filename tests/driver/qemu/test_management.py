"""Format NVM, and namespaces attached and detached, on a controller that nobody here wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from driver import InvalidRequest, Unsupported

from .conftest import MIB, Open, until


async def test_formats(image: Path, opened: Open) -> None:
    async with opened() as (controller, _):
        namespace = await controller.namespace()
        usable = {
            form.lba_bytes: index
            for index, form in enumerate(namespace.identify.formats)
            if not form.metadata_bytes
        }
        assert usable.keys() >= {512, 4096}
        await namespace.write(0, b"x" * 512)
        for size in (4096, 512):
            await controller.manage.format(1, usable[size])
            namespace = await controller.namespace()
            assert (namespace.lba_bytes, namespace.size_bytes) == (size, 64 * MIB)
            await namespace.write(1, b"y" * size)
            await namespace.flush()
            assert image.read_bytes()[size : 2 * size] == b"y" * size
        with_metadata = next(
            index for index, form in enumerate(namespace.identify.formats) if form.metadata_bytes
        )
        with pytest.raises(InvalidRequest, match="bytes of metadata per block"):
            await controller.manage.format(1, with_metadata)


async def test_a_namespace_is_detached_and_attached_again(
    image: Path, tmp_path: Path, opened: Open
) -> None:
    second = tmp_path / "second.img"
    second.write_bytes(bytes(8 * MIB))
    options = {"subsystem": "on", "shared": "on"}
    async with opened(options, images=[image, second]) as (controller, _):
        assert await controller.namespaces() == [1, 2]
        assert await controller.query.allocated_namespaces() == [1, 2]
        ours = controller.identify.controller_id
        assert await controller.query.controllers() == [ours]
        assert await controller.query.controllers(2) == [ours]
        namespace = await controller.namespace(2)
        await namespace.write(0, b"2" * 512)
        await controller.manage.detach(2)
        assert await controller.namespaces() == [1]
        assert await controller.query.controllers(2) == []
        # Either reason is true: QEMU tells by an event too, which may be handled first.
        with pytest.raises(InvalidRequest, match=r"is gone: .*(it was detached|no such namespace)"):
            await namespace.read(0, bytearray(512))
        await controller.manage.attach(2)
        assert await controller.namespaces() == [1, 2]
        out = bytearray(512)
        await (await controller.namespace(2)).read(0, out)
        assert out == b"2" * 512


async def test_a_namespace_that_appears_is_told_of(
    image: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"subsystem": "on", "shared": "on", "detached": "on"}
    async with opened(options) as (controller, _):
        assert await controller.namespaces() == []
        with caplog.at_level("INFO", logger="nvmefs.driver"):
            await controller.manage.attach(1)
            await until(lambda: "namespace 1 appeared" in caplog.text)
        await (await controller.namespace()).read(0, bytearray(512))


async def test_what_it_cannot(opened: Open) -> None:
    """QEMU 7.2 attaches and detaches, and says so by the bit that promises creation too."""
    async with opened({"subsystem": "on", "shared": "on"}) as (controller, _):
        with trio.fail_after(10), pytest.raises(Exception, match="Invalid"):
            await controller.manage.create(1000)
    async with opened() as (controller, _):
        if not controller.identify.namespace_management:
            with pytest.raises(Unsupported):
                await controller.manage.attach(1)
