/*
 * Copy (NVM command set 1.0, section 3.2.2), descriptor format 0: blocks move inside the namespace, the host sees none
 * of them. All ranges are checked before the first one is touched. What a copy onto its own source leaves is undefined
 * there, and so it is here.
 */
#include "controller.h"

#define COPY_FORMAT(cdw12) ((cdw12) >> 8 & 0xf)
#define COPY_PROTECTION 0x3c00f000u /* PRINFOR, PRINFOW: there is no protection information */

struct command_limits copy_limits(const struct controller *c)
{
    struct command_limits limits = c->options.limits;
    if (!limits.copy_ranges)
        limits.copy_ranges = 128;
    if (!limits.copy_range_blocks)
        limits.copy_range_blocks = 2048;
    if (!limits.copy_blocks)
        limits.copy_blocks = 8192;
    return limits;
}

static uint16_t check_ranges(const struct controller *c, const struct nvme_copy_range *ranges, uint32_t count,
                             uint64_t destination)
{
    struct command_limits limits = copy_limits(c);
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t length = ranges[i].blocks + 1ull;
        if (length > limits.copy_range_blocks)
            return STATUS_SIZE_LIMIT;
        if (!io_in_range(c, ranges[i].lba, length))
            return STATUS_LBA_OUT_OF_RANGE;
        blocks += length;
    }
    if (blocks > limits.copy_blocks)
        return STATUS_SIZE_LIMIT;
    return io_in_range(c, destination, blocks) ? STATUS_SUCCESS : STATUS_LBA_OUT_OF_RANGE;
}

static uint16_t move(struct controller *c, uint64_t from, uint64_t to, uint64_t bytes, bool durable)
{
    while (bytes) {
        uint64_t now = bytes < BOUNCE_BYTES ? bytes : BOUNCE_BYTES;
        struct iovec piece = {c->bounce, now};
        if (backend_read(&c->backend, &piece, 1, from)) {
            COUNT(c, media_errors, 1);
            return STATUS_UNRECOVERED_READ;
        }
        piece = (struct iovec){c->bounce, now};
        if (backend_write(&c->backend, &piece, 1, to, durable)) {
            COUNT(c, media_errors, 1);
            return STATUS_WRITE_FAULT;
        }
        from += now;
        to += now;
        bytes -= now;
    }
    return STATUS_SUCCESS;
}

uint16_t copy_execute(struct controller *c, const struct nvme_command *cmd)
{
    struct nvme_copy_range ranges[256];
    uint32_t count = (cmd->cdw12 & 0xff) + 1;
    uint64_t destination = cmd->cdw10 | (uint64_t)cmd->cdw11 << 32;
    if (c->options.read_only)
        return STATUS_WRITE_PROTECTED;
    if (COPY_FORMAT(cmd->cdw12) || cmd->cdw12 & COPY_PROTECTION)
        return STATUS_INVALID_FIELD;
    if (count > copy_limits(c).copy_ranges)
        return STATUS_SIZE_LIMIT;
    uint16_t status = data_copy_in(c, cmd, ranges, count * sizeof ranges[0]);
    if (!status)
        status = check_ranges(c, ranges, count, destination);
    c->burst_bytes += BURST_BYTES;
    for (uint32_t i = 0; !status && i < count; i++) {
        uint64_t bytes = (ranges[i].blocks + 1ull) << c->block_bits;
        status = move(c, ranges[i].lba << c->block_bits, destination << c->block_bits, bytes, io_must_be_durable(c, cmd));
        destination += ranges[i].blocks + 1ull;
        COUNT(c, bytes_written, bytes);
    }
    return status;
}
