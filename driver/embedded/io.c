/*
 * The NVM command set (NVM Express 1.4, section 6): data goes straight between DMA memory and the image.
 */
#include <errno.h>
#include <string.h>

#include "controller.h"

#define CDW12_FUA (1u << 30)
#define CDW12_DEAC (1u << 25)
#define DSM_DEALLOCATE (1u << 2)

struct extent {
    uint64_t lba;
    uint64_t offset; /* bytes into the image */
    uint64_t bytes;
};

bool io_in_range(const struct controller *c, uint64_t lba, uint64_t blocks)
{
    return lba <= c->block_count && blocks <= c->block_count - lba;
}

/* The blocks that most commands name: start in dwords 10-11, zero-based count in dword 12. */
static struct extent extent_of(const struct controller *c, const struct nvme_command *cmd)
{
    uint64_t lba = cmd->cdw10 | (uint64_t)cmd->cdw11 << 32;
    uint64_t blocks = (cmd->cdw12 & 0xffff) + 1ull;
    return (struct extent){lba, lba << c->block_bits, blocks << c->block_bits};
}

static uint16_t check_extent(const struct controller *c, const struct extent *extent, bool transfers)
{
    if (transfers && c->options.max_transfer_bytes && extent->bytes > c->options.max_transfer_bytes)
        return STATUS_INVALID_FIELD; /* section 5.15.2.2, MDTS */
    if (!io_in_range(c, extent->lba, extent->bytes >> c->block_bits))
        return STATUS_LBA_OUT_OF_RANGE;
    return STATUS_SUCCESS;
}

/* Beyond a limit that is given. */
static bool above(uint64_t value, uint64_t limit)
{
    return limit && value > limit;
}

static uint16_t media_error(struct controller *c, uint16_t status)
{
    COUNT(c, media_errors, 1);
    return status;
}

/* Of backend_write() and the like. A thin namespace that has run out of space says so with Capacity Exceeded. */
static uint16_t write_error(struct controller *c, int error)
{
    return media_error(c, error == -ENOSPC || error == -EDQUOT ? STATUS_CAPACITY_EXCEEDED : STATUS_WRITE_FAULT);
}

/* Either the host asked for it, or it turned the write cache off. */
bool io_must_be_durable(const struct controller *c, const struct nvme_command *cmd)
{
    return cmd->cdw12 & CDW12_FUA || !(c->features.write_cache & 1);
}

static uint16_t resolve_data(struct controller *c, const struct nvme_command *cmd, uint64_t bytes)
{
    /* The commonest command by far: one page or less. */
    uint64_t page = 1ull << c->page_bits;
    if (!cmd->flags && bytes <= page - (cmd->prp1 & (page - 1)) && !(cmd->prp1 & 3)) {
        void *host = dma_translate(c->dma, cmd->prp1, bytes);
        if (!host)
            return STATUS_DATA_TRANSFER_ERROR;
        c->iov[0] = (struct iovec){host, bytes};
        c->iov_count = 1;
        return STATUS_SUCCESS;
    }
    return data_resolve(c, cmd, bytes);
}

static uint16_t execute_read(struct controller *c, const struct nvme_command *cmd)
{
    struct extent extent = extent_of(c, cmd);
    uint16_t status = check_extent(c, &extent, true);
    if (!status)
        status = resolve_data(c, cmd, extent.bytes);
    if (status)
        return status;
    /* FUA on a read: what the cache holds shall be on the medium first. */
    if (cmd->cdw12 & CDW12_FUA && backend_flush(&c->backend))
        return media_error(c, STATUS_UNRECOVERED_READ);
    if (backend_read(&c->backend, c->iov, c->iov_count, extent.offset))
        return media_error(c, STATUS_UNRECOVERED_READ);
    c->burst_bytes += (uint32_t)extent.bytes;
    COUNT(c, reads, 1);
    COUNT(c, bytes_read, extent.bytes);
    return STATUS_SUCCESS;
}

static uint16_t execute_write(struct controller *c, const struct nvme_command *cmd)
{
    struct extent extent = extent_of(c, cmd);
    if (c->options.read_only)
        return STATUS_WRITE_PROTECTED;
    uint16_t status = check_extent(c, &extent, true);
    if (!status)
        status = resolve_data(c, cmd, extent.bytes);
    if (status)
        return status;
    bool durable = io_must_be_durable(c, cmd);
    int error = backend_write(&c->backend, c->iov, c->iov_count, extent.offset, durable);
    if (error)
        return write_error(c, error);
    c->burst_bytes += durable ? BURST_BYTES : (uint32_t)extent.bytes;
    COUNT(c, writes, 1);
    COUNT(c, bytes_written, extent.bytes);
    return STATUS_SUCCESS;
}

static uint16_t execute_flush(struct controller *c)
{
    c->burst_bytes += BURST_BYTES; /* took long: the interrupt goes out now */
    COUNT(c, flushes, 1);
    int error = backend_flush(&c->backend);
    return error ? write_error(c, error) : STATUS_SUCCESS;
}

/* Reads the extent piece by piece; with `compare` each piece is held against the host's data in c->iov. */
static uint16_t read_and_check(struct controller *c, const struct extent *extent, bool compare)
{
    uint32_t vector = 0;
    uint64_t used = 0; /* bytes of that vector already compared */
    for (uint64_t done = 0; done < extent->bytes;) {
        uint64_t bytes = extent->bytes - done < BOUNCE_BYTES ? extent->bytes - done : BOUNCE_BYTES;
        struct iovec piece = {c->bounce, bytes};
        if (backend_read(&c->backend, &piece, 1, extent->offset + done))
            return media_error(c, STATUS_UNRECOVERED_READ);
        for (uint64_t at = 0; compare && at < bytes;) {
            const struct iovec *host = &c->iov[vector];
            uint64_t run = host->iov_len - used < bytes - at ? host->iov_len - used : bytes - at;
            if (memcmp((const uint8_t *)host->iov_base + used, c->bounce + at, run))
                return STATUS_COMPARE_FAILURE;
            at += run;
            used += run;
            if (used == host->iov_len) {
                vector++;
                used = 0;
            }
        }
        done += bytes;
    }
    c->burst_bytes += (uint32_t)extent->bytes;
    COUNT(c, reads, 1);
    return STATUS_SUCCESS;
}

static uint16_t execute_compare(struct controller *c, const struct nvme_command *cmd)
{
    struct extent extent = extent_of(c, cmd);
    uint16_t status = check_extent(c, &extent, true);
    if (!status)
        status = resolve_data(c, cmd, extent.bytes);
    return status ? status : read_and_check(c, &extent, true);
}

static uint16_t execute_verify(struct controller *c, const struct nvme_command *cmd)
{
    struct extent extent = extent_of(c, cmd);
    if (above(extent.bytes, c->options.limits.verify_bytes))
        return STATUS_INVALID_FIELD; /* VSL, as MDTS */
    uint16_t status = check_extent(c, &extent, false);
    return status ? status : read_and_check(c, &extent, false);
}

static uint16_t execute_write_zeroes(struct controller *c, const struct nvme_command *cmd)
{
    struct extent extent = extent_of(c, cmd);
    if (c->options.read_only)
        return STATUS_WRITE_PROTECTED;
    if (above(extent.bytes, c->options.limits.write_zeroes_bytes))
        return STATUS_INVALID_FIELD; /* WZSL, as MDTS */
    uint16_t status = check_extent(c, &extent, false);
    if (status)
        return status;
    c->burst_bytes += BURST_BYTES;
    int error = backend_zero(&c->backend, extent.offset, extent.bytes, cmd->cdw12 & CDW12_DEAC);
    if (!error && io_must_be_durable(c, cmd))
        error = backend_flush(&c->backend);
    return error ? write_error(c, error) : STATUS_SUCCESS;
}

static uint16_t check_ranges(const struct controller *c, const struct nvme_dsm_range *ranges, uint32_t count)
{
    const struct command_limits *limits = &c->options.limits;
    uint64_t blocks = 0;
    if (above(count, limits->ranges))
        return STATUS_SIZE_LIMIT;
    for (uint32_t i = 0; i < count; i++) {
        if (above(ranges[i].blocks, limits->range_blocks))
            return STATUS_SIZE_LIMIT;
        if (!io_in_range(c, ranges[i].lba, ranges[i].blocks))
            return STATUS_LBA_OUT_OF_RANGE;
        blocks += ranges[i].blocks;
    }
    return above(blocks, limits->deallocate_blocks) ? STATUS_SIZE_LIMIT : STATUS_SUCCESS;
}

/* All ranges are checked before the first one is touched. Read and write hints are taken and not used. */
static uint16_t execute_dataset_management(struct controller *c, const struct nvme_command *cmd)
{
    struct nvme_dsm_range ranges[256];
    uint32_t count = (cmd->cdw10 & 0xff) + 1;
    if (c->options.read_only)
        return STATUS_WRITE_PROTECTED;
    uint16_t status = data_copy_in(c, cmd, ranges, count * sizeof ranges[0]);
    if (status || !(cmd->cdw11 & DSM_DEALLOCATE))
        return status;
    status = check_ranges(c, ranges, count);
    if (status)
        return status;
    for (uint32_t i = 0; i < count; i++)
        deallocated_note(c, ranges[i].lba, ranges[i].blocks);
    if (!c->backend.can_punch)
        return STATUS_SUCCESS; /* a hint (section 6.7); DLFEAT then promises nothing about the content */
    c->burst_bytes += BURST_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = ranges[i].lba << c->block_bits, bytes = (uint64_t)ranges[i].blocks << c->block_bits;
        int error = backend_zero(&c->backend, offset, bytes, true);
        if (error)
            return write_error(c, error);
    }
    return STATUS_SUCCESS;
}

uint16_t io_execute(struct controller *c, const struct nvme_command *cmd)
{
    uint16_t (*execute)(struct controller *, const struct nvme_command *) = NULL;
    switch (cmd->opcode) {
    case IO_READ: execute = execute_read; break;
    case IO_WRITE: execute = execute_write; break;
    case IO_COMPARE: execute = execute_compare; break;
    case IO_WRITE_ZEROES: execute = execute_write_zeroes; break;
    case IO_DATASET_MANAGEMENT: execute = execute_dataset_management; break;
    case IO_VERIFY: execute = execute_verify; break;
    case IO_COPY: execute = copy_execute; break;
    case IO_FLUSH: break;
    default: return STATUS_INVALID_OPCODE;
    }
    /* Fused operations are not offered, nor metadata by an SGL; the rest is reserved. */
    if (cmd->flags && !(COMMAND_HAS_SGL(cmd) && !(cmd->flags & 0x3f) && c->options.sgl))
        return STATUS_INVALID_FIELD;
    if (cmd->nsid != 1 && !(cmd->opcode == IO_FLUSH && cmd->nsid == NVME_BROADCAST))
        return STATUS_INVALID_NAMESPACE;
    return execute ? execute(c, cmd) : execute_flush(c);
}
