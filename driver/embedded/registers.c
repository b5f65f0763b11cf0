/*
 * The registers as the host's threads see them (section 3.1). One that acts (CC) is only noted here: the controller's
 * thread acts on it (engine.c), as a device does, and CSTS tells.
 */
#include "queues.h"

#define TIMEOUT_HALF_SECONDS 40ull /* CAP.TO: a shutdown may have to write a large page cache back */

static uint64_t capabilities(const struct controller *c)
{
    uint64_t honest = (c->options.queue_entries - 1ull)                   /* MQES */
                      | 1ull << 16                                        /* CQR: queues are contiguous */
                      | TIMEOUT_HALF_SECONDS << 24                        /* TO */
                      | 1ull << 37                                        /* CSS: the NVM command set */
                      | (uint64_t)(MAX_PAGE_BITS - MIN_PAGE_BITS) << 52;  /* MPSMAX; MPSMIN and DSTRD are 0 */
    return (honest & ~c->cap_mask) | c->cap_value;
}

static uint32_t read_register(struct controller *c, uint32_t offset)
{
    if (c->gone)
        return ~0u;
    switch (offset) {
    case REG_CAP: return (uint32_t)capabilities(c);
    case REG_CAP + 4: return (uint32_t)(capabilities(c) >> 32);
    case REG_VS: return NVME_VERSION;
    case REG_INTMS:
    case REG_INTMC: return c->regs.intms;
    case REG_CC: return c->regs.cc;
    case REG_CSTS: return c->regs.csts;
    case REG_AQA: return c->regs.aqa;
    case REG_ASQ: return (uint32_t)c->regs.asq;
    case REG_ASQ + 4: return (uint32_t)(c->regs.asq >> 32);
    case REG_ACQ: return (uint32_t)c->regs.acq;
    case REG_ACQ + 4: return (uint32_t)(c->regs.acq >> 32);
    default: return 0; /* reserved */
    }
}

static void write_cc(struct controller *c, uint32_t value)
{
    if (c->regs.cc & CC_EN && !(value & CC_EN))
        c->reset_requested = true;
    c->regs.cc = value & 0x00fffff1;
}

static void write_mask(struct controller *c, uint32_t mask)
{
    c->regs.intms = mask;
    __atomic_store_n(&c->interrupt_mask, mask, __ATOMIC_RELAXED);
}

static void write_register(struct controller *c, uint32_t offset, uint32_t value)
{
    const uint64_t low = 0xffffffffull;
    switch (offset) {
    case REG_INTMS: write_mask(c, c->regs.intms | value); break;
    case REG_INTMC: write_mask(c, c->regs.intms & ~value); break;
    case REG_CC: write_cc(c, value); break;
    case REG_AQA: c->regs.aqa = value & 0x0fff0fff; break;
    case REG_ASQ: c->regs.asq = (c->regs.asq & ~low) | (value & 0xfffff000u); break;
    case REG_ASQ + 4: c->regs.asq = (c->regs.asq & low) | (uint64_t)value << 32; break;
    case REG_ACQ: c->regs.acq = (c->regs.acq & ~low) | (value & 0xfffff000u); break;
    case REG_ACQ + 4: c->regs.acq = (c->regs.acq & low) | (uint64_t)value << 32; break;
    default: break; /* read-only or reserved */
    }
}

uint64_t controller_read(struct controller *c, uint32_t offset, uint32_t bytes)
{
    if (offset >= REG_DOORBELLS)
        return 0; /* doorbells are write-only: what a read returns is up to us */
    pthread_mutex_lock(&c->lock);
    uint64_t value = read_register(c, offset);
    if (bytes == 8)
        value |= (uint64_t)read_register(c, offset + 4) << 32;
    pthread_mutex_unlock(&c->lock);
    return value;
}

void controller_write(struct controller *c, uint32_t offset, uint64_t value, uint32_t bytes)
{
    if (offset >= REG_DOORBELLS) {
        for (uint32_t at = offset; at < offset + bytes && at < REG_END; at += 4, value >>= 32)
            __atomic_store_n(&c->doorbells[(at - REG_DOORBELLS) / 4], (uint32_t)value, __ATOMIC_RELEASE);
        engine_kick(c);
        return;
    }
    pthread_mutex_lock(&c->lock);
    if (!c->gone)
        write_register(c, offset, (uint32_t)value);
    if (!c->gone && bytes == 8)
        write_register(c, offset + 4, (uint32_t)(value >> 32));
    pthread_mutex_unlock(&c->lock);
    if (offset <= REG_CC) /* the rest is only looked at when CC is written */
        controller_request_attention(c);
}
