/* To Python and back. The channel that must write the answer travels in the top bits of the request's `unique`: the
 * kernel counts requests up from 1, by 2 (fs/fuse/dev.c, fuse_get_unique()), and will not need them. */
#include "frontend_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum {
    REPLY_BYTES = FE_MAX_WRITE + FE_PAGE,
    CHANNEL_SHIFT = 48, /* six bits: FE_MAX_CHANNELS */
    PLACE_SHIFT = 54,   /* ten bits, the transport's */
    LENDABLE = 64,      /* slots, the first of a channel: a bit for each */
};

static const uint64_t UNTAGGED = (1ull << CHANNEL_SHIFT) - 1;

/* ---- answers ----------------------------------------------------------------------------------------------------- */

int fe_answer(struct channel *ch, struct fe_slot *slot, int error, const void *data, uint32_t bytes)
{
    struct fuse_out_header out = {
        .len = (uint32_t)sizeof out + bytes, .error = -error, .unique = fe_header(slot)->unique & UNTAGGED};
    return ch->transport->answer(ch, slot, &out, data);
}

/* An answer that Python has made, header included; a notification has unique 0. 0 or an errno. */
int fe_reply(struct frontend *fe, const void *message, uint32_t length)
{
    struct fuse_out_header out;
    if (length < sizeof out)
        return EINVAL;
    memcpy(&out, message, sizeof out);
    uint32_t index = out.unique >> CHANNEL_SHIFT & (FE_MAX_CHANNELS - 1), place = (uint32_t)(out.unique >> PLACE_SHIFT);
    if (index >= fe->config.channel_count || out.len != length)
        return EINVAL;
    if (!out.unique)
        index = fe_rings(fe); /* notifications are for /dev/fuse */
    struct channel *ch = &fe->channels[index];
    out.unique &= UNTAGGED;
    return ch->transport->reply(ch, place, &out, (const uint8_t *)message + sizeof out);
}

static int wants_answer(uint32_t opcode)
{
    return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* Whether frontend.py takes the request, or pyfuse3. */
static int is_upcall(const struct channel *ch, const struct fe_slot *slot)
{
    uint32_t opcode = fe_header(slot)->opcode;
    return opcode < 64 && ch->fe->config.upcalls >> opcode & 1;
}

int fe_python_fd(const struct channel *ch, const struct fe_slot *slot)
{
    return is_upcall(ch, slot) ? ch->fe->config.upcalls_fd : ch->fe->config.requests_fd;
}

/* Whether Python may write from where the kernel has put the data. Half of the slots are kept for those who need one. */
static int may_lend(const struct channel *ch, const struct fe_slot *slot)
{
    return ch->ring && slot->data && slot->data_iova && slot < ch->slots + LENDABLE && ch->lent_count < ch->fe->config.slots / 2 &&
           fe_header(slot)->opcode == FUSE_WRITE && is_upcall(ch, slot) &&
           slot->length >= FE_HEADER_BYTES + FE_LEND_FROM;
}

/* The message to Python: all of it, or its header and where the data is. Less than 0, with errno set, if it is not sent. */
static ssize_t send_to_python(struct channel *ch, struct fe_slot *slot)
{
    struct fe_lent lent;
    struct iovec parts[2] = {{slot->message, slot->length - slot->apart}, {slot->data, slot->apart}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = slot->apart ? 2 : 1};
    slot->lent = (uint32_t)may_lend(ch, slot);
    if (slot->lent) {
        lent = (struct fe_lent){ch->index, (uint32_t)(slot - ch->slots)};
        parts[0].iov_len = FE_HEADER_BYTES;
        parts[1] = (struct iovec){&lent, sizeof lent};
        message.msg_iovlen = 2;
    }
    return sendmsg(fe_python_fd(ch, slot), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* 0: the socket is full. Else the request is Python's, or has been answered. */
static int try_send(struct channel *ch, struct fe_slot *slot)
{
    while (send_to_python(ch, slot) < 0) {
        slot->lent = 0;
        if (errno == EINTR)
            continue;
        if (errno == EAGAIN)
            return 0;
        if (wants_answer(fe_header(slot)->opcode))
            fe_answer(ch, slot, EIO, NULL, 0);
        return 1;
    }
    return 1;
}

/* The request has been sent. */
static void let_go(struct channel *ch, struct fe_slot *slot)
{
    fe_count(&ch->lent, slot->lent);
    if (slot->lent && !ch->transport->holds) {
        ch->lent_count++;
        return;
    }
    slot->lent = 0;
    fe_free_slot(ch, slot);
}

/* Python has written what was lent, and answered. From any thread. */
void fe_give_back(struct frontend *fe, struct fe_lent lent)
{
    if (lent.channel < fe->config.channel_count && lent.slot < fe->config.slots && lent.slot < LENDABLE)
        atomic_fetch_or(&fe->channels[lent.channel].returned, 1ull << lent.slot);
}

/* Python has not: the drive may still use what was lent. 0 or an errno; the request cannot be answered then. */
int fe_forsake(struct frontend *fe, struct fe_lent lent)
{
    if (lent.channel >= fe->config.channel_count || lent.slot >= fe->config.slots)
        return EINVAL;
    struct channel *ch = &fe->channels[lent.channel];
    return ch->transport->forsake ? ch->transport->forsake(ch, &ch->slots[lent.slot]) : 0;
}

/* Nobody is woken for a slot: the other half of them is the channel's own. */
void fe_collect(struct channel *ch)
{
    if (!atomic_load_explicit(&ch->returned, memory_order_relaxed))
        return;
    for (uint64_t left = atomic_exchange(&ch->returned, 0); left; left &= left - 1) {
        struct fe_slot *slot = &ch->slots[__builtin_ctzll(left)];
        if (!slot->lent)
            continue;
        slot->lent = 0;
        ch->lent_count--;
        fe_free_slot(ch, slot);
    }
}

/* A request that Python has read. 0: it is for itself. 1: it was pyfuse3's, which had nothing to do, so there is room. */
int fe_pass(struct channel *ch, struct fe_slot *slot)
{
    if (is_upcall(ch, slot))
        return 0;
    fe_count(&ch->forwarded, 1);
    if (!try_send(ch, slot) && wants_answer(fe_header(slot)->opcode))
        fe_answer(ch, slot, EIO, NULL, 0);
    return 1;
}

/* Never waits for Python: Python may be waiting for the very commands that this thread has to reap. */
void fe_forward(struct channel *ch, struct fe_slot *slot)
{
    struct fuse_in_header *in = (struct fuse_in_header *)slot->message;
    if (in->opcode == FUSE_INTERRUPT) { /* pyfuse3 does not know it; the request it means goes on */
        fe_free_slot(ch, slot);
        return;
    }
    in->unique |= (uint64_t)ch->index << CHANNEL_SHIFT | (uint64_t)ch->transport->place_of(ch, slot) << PLACE_SHIFT;
    if (in->opcode == FUSE_INIT)
        fe_note_init(ch->fe, slot);
    fe_count(is_upcall(ch, slot) ? &ch->upcalls : &ch->forwarded, 1);
    if (!ch->backlog.first && try_send(ch, slot))
        let_go(ch, slot);
    else
        fe_line_add(&ch->backlog, slot);
}

/* What has waited for room, in order. Returns how many went. */
int fe_send_backlog(struct channel *ch)
{
    int sent = 0;
    while (ch->backlog.first && try_send(ch, ch->backlog.first)) {
        let_go(ch, fe_line_take(&ch->backlog));
        sent++;
    }
    return sent;
}

/* ---- the thread that carries pyfuse3's answers back ---------------------------------------------------------------- */

void *fe_reply_thread(void *argument)
{
    struct frontend *fe = argument;
    uint8_t *buffer = malloc(REPLY_BYTES);
    while (buffer) {
        ssize_t length = recv(fe->config.requests_fd, buffer, REPLY_BYTES, 0);
        if (length < 0 && errno == EINTR)
            continue;
        if (length < (ssize_t)sizeof(struct fuse_out_header))
            break; /* the other end is closed */
        int rings = fe_complete_init(fe, buffer, (uint32_t)length);
        fe_reply(fe, buffer, (uint32_t)length);
        if (rings)
            fe_begin_rings(fe, rings > 0);
    }
    free(buffer);
    return NULL;
}
