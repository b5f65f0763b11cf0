/* FUSE_INIT: libfuse answers it, and its answer is completed on the way back with what it did not ask for.
 * What is on and what is off, and why: docs/design.md. The protocol: <linux/fuse.h>; fs/fuse/inode.c, process_init_reply(). */
#include "frontend_private.h"

#include <string.h>

#include "fuse_uring.h"

void fe_note_init(struct frontend *fe, const struct fe_slot *slot)
{
    const struct fuse_in_header *in = fe_header(slot);
    const uint8_t *body = slot->message + sizeof *in;
    uint32_t word[5] = {0}; /* major, minor, max_readahead, flags, flags2 */
    size_t length = slot->length - sizeof *in;
    memcpy(word, body, length < sizeof word ? length : sizeof word);
    uint64_t offered = word[3];
    if (offered & FUSE_INIT_EXT)
        offered |= (uint64_t)word[4] << 32;
    atomic_store(&fe->init_offered, offered);
    atomic_store(&fe->init_unique, in->unique);
}

/* Of any answer; changes that to FUSE_INIT. */
int fe_complete_init(struct frontend *fe, uint8_t *reply, uint32_t length)
{
    struct fuse_out_header *header = (struct fuse_out_header *)reply;
    struct fuse_init_out *out = (struct fuse_init_out *)(reply + sizeof *header);
    if (!header->unique || header->unique != atomic_load(&fe->init_unique))
        return 0;
    atomic_store(&fe->init_unique, 0);
    if (header->error || length < sizeof *header + sizeof *out)
        return 0;
    uint64_t wanted = fe->config.want_flags & atomic_load(&fe->init_offered);
    if (wanted >> 32)
        wanted |= FUSE_INIT_EXT;
    out->flags = (out->flags & ~(uint32_t)fe->config.refuse_flags) | (uint32_t)wanted;
    if (out->flags & FUSE_INIT_EXT)
        out->flags2 |= (uint32_t)(wanted >> 32);
    atomic_store(&fe->init_flags, out->flags | (uint64_t)out->flags2 << 32);
    if (fe->config.max_background) {
        out->max_background = (uint16_t)fe->config.max_background;
        out->congestion_threshold = (uint16_t)fe->config.congestion_threshold;
    }
    return wanted & FUSE_OVER_IO_URING ? 1 : -1;
}
