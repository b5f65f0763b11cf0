/*
 * The volatile write cache, its fault model:
 *   - A write is in the cache when it completes; reads see it from then on.
 *   - Flush, a shutdown and turning the cache off make all of it durable; FUA makes that one write durable, and what the
 *     cache held of the same blocks is superseded: it cannot come back.
 *   - Beyond its capacity the cache writes its oldest entries back by itself, as a drive may at any time.
 *   - A power cut leaves any subset of what was not flushed: of each write nothing, all, or some of its units. A unit
 *     (one logical block, or a 512-byte sector if asked for) holds the old bytes or the new ones, never a mixture. An
 *     older write may survive where a newer one is lost. Which, is decided by the seed, the place and the number of the
 *     write, and by nothing else.
 *   - Reads of what is durable are never wrong; the image itself never tears.
 *
 * "Durable" is the image file. What reaches it is as safe as the host's page cache; backend_flush() goes on to fdatasync.
 */
#define _GNU_SOURCE
#include "cache.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mix.h"

#define CAPACITY_ENTRIES 2048u
#define CAPACITY_BYTES (32u << 20)

/* One write, or what is left of it after a part was superseded. */
struct entry {
    struct entry *next; /* newer */
    uint64_t number;    /* of the write */
    uint64_t offset;
    uint64_t bytes;
    uint8_t *data; /* NULL: zeroes */
};

struct cache {
    struct entry *oldest, **end;
    uint64_t writes;
    uint64_t data_bytes;
    uint32_t entries;
    uint32_t tear_bytes;
};

struct cache *cache_new(uint32_t tear_bytes)
{
    struct cache *cache = calloc(1, sizeof *cache);
    if (cache) {
        cache->end = &cache->oldest;
        cache->tear_bytes = tear_bytes;
    }
    return cache;
}

static void drop(struct cache *cache, struct entry **at)
{
    struct entry *entry = *at;
    *at = entry->next;
    if (!entry->next)
        cache->end = at;
    cache->entries--;
    cache->data_bytes -= entry->data ? entry->bytes : 0;
    free(entry->data);
    free(entry);
}

void cache_free(struct cache *cache)
{
    if (!cache)
        return;
    while (cache->oldest)
        drop(cache, &cache->oldest);
    free(cache);
}

/* ---- the image ----------------------------------------------------------------------------------------- */

static int store(int fd, const uint8_t *data, uint64_t bytes, uint64_t offset)
{
    while (bytes) {
        ssize_t done = pwrite(fd, data, bytes, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        data += done;
        bytes -= (uint64_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

/* [from, to) of the image's bytes, which lie inside the entry. */
static int store_part(int fd, const struct entry *entry, uint64_t from, uint64_t to)
{
    static const uint8_t zeroes[65536];
    if (entry->data)
        return store(fd, entry->data + (from - entry->offset), to - from, from);
    if (!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)))
        return 0;
    for (uint64_t bytes; from < to; from += bytes) {
        bytes = to - from < sizeof zeroes ? to - from : sizeof zeroes;
        int error = store(fd, zeroes, bytes, from);
        if (error)
            return error;
    }
    return 0;
}

static int write_back_oldest(struct cache *cache, int fd)
{
    const struct entry *entry = cache->oldest;
    int error = store_part(fd, entry, entry->offset, entry->offset + entry->bytes);
    if (!error)
        drop(cache, &cache->oldest);
    return error;
}

int cache_write_back(struct cache *cache, int fd)
{
    int error = 0;
    while (!error && cache->oldest)
        error = write_back_oldest(cache, fd);
    return error;
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static int append(struct cache *cache, int fd, struct entry *entry)
{
    entry->number = ++cache->writes;
    *cache->end = entry;
    cache->end = &entry->next;
    cache->entries++;
    cache->data_bytes += entry->data ? entry->bytes : 0;
    int error = 0;
    while (!error && (cache->entries > CAPACITY_ENTRIES || cache->data_bytes > CAPACITY_BYTES))
        error = write_back_oldest(cache, fd);
    return error;
}

int cache_write(struct cache *cache, int fd, const struct iovec *vectors, uint32_t count, uint64_t offset)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++)
        bytes += vectors[i].iov_len;
    struct entry *entry = calloc(1, sizeof *entry);
    uint8_t *data = malloc(bytes), *to = data;
    if (!entry || !data) {
        free(entry);
        free(data);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < count; i++) {
        memcpy(to, vectors[i].iov_base, vectors[i].iov_len);
        to += vectors[i].iov_len;
    }
    *entry = (struct entry){.offset = offset, .bytes = bytes, .data = data};
    return append(cache, fd, entry);
}

int cache_zero(struct cache *cache, int fd, uint64_t offset, uint64_t bytes)
{
    struct entry *entry = calloc(1, sizeof *entry);
    if (!entry)
        return -ENOMEM;
    *entry = (struct entry){.offset = offset, .bytes = bytes};
    return append(cache, fd, entry);
}

/* Cuts [from, to) out of an entry: what lies behind it becomes an entry of its own, of the same write. */
static int cut(struct cache *cache, struct entry *entry, uint64_t from, uint64_t to)
{
    uint64_t end = entry->offset + entry->bytes;
    if (to < end) {
        struct entry *rest = malloc(sizeof *rest);
        uint8_t *data = entry->data ? malloc(end - to) : NULL;
        if (!rest || (entry->data && !data)) {
            free(rest);
            free(data);
            return -ENOMEM;
        }
        if (data)
            memcpy(data, entry->data + (to - entry->offset), end - to);
        *rest = (struct entry){entry->next, entry->number, to, end - to, data};
        if (!entry->next)
            cache->end = &rest->next;
        entry->next = rest;
        cache->entries++;
        cache->data_bytes += data ? end - to : 0;
    }
    cache->data_bytes -= entry->data ? end - from : 0;
    entry->bytes = from - entry->offset;
    return 0;
}

int cache_supersede(struct cache *cache, uint64_t offset, uint64_t bytes)
{
    struct entry **at = &cache->oldest;
    while (*at) {
        struct entry *entry = *at;
        uint64_t end = entry->offset + entry->bytes;
        if (end <= offset || entry->offset >= offset + bytes) {
            at = &entry->next;
            continue;
        }
        uint64_t from = entry->offset > offset ? entry->offset : offset;
        int error = cut(cache, entry, from, end < offset + bytes ? end : offset + bytes);
        if (error)
            return error;
        if (entry->bytes)
            at = &entry->next;
        else
            drop(cache, at);
    }
    return 0;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

static void overlay_one(const struct entry *entry, const struct iovec *vectors, uint32_t count, uint64_t offset)
{
    uint64_t end = entry->offset + entry->bytes;
    for (uint32_t i = 0; i < count && offset < end; offset += vectors[i++].iov_len) {
        uint64_t limit = offset + vectors[i].iov_len;
        if (limit <= entry->offset)
            continue;
        uint64_t from = entry->offset > offset ? entry->offset : offset, to = end < limit ? end : limit;
        uint8_t *host = (uint8_t *)vectors[i].iov_base + (from - offset);
        if (entry->data)
            memcpy(host, entry->data + (from - entry->offset), to - from);
        else
            memset(host, 0, to - from);
    }
}

void cache_overlay(const struct cache *cache, const struct iovec *vectors, uint32_t count, uint64_t offset)
{
    for (const struct entry *entry = cache->oldest; entry; entry = entry->next)
        overlay_one(entry, vectors, count, offset);
}

/* ---- power cut ----------------------------------------------------------------------------------------- */

enum { LOST, KEPT, TORN, FATES };

/* Unit by unit; units are counted from the beginning of the namespace, so that they are blocks or sectors. */
static int store_torn(const struct cache *cache, int fd, const struct entry *entry, uint64_t seed)
{
    uint64_t end = entry->offset + entry->bytes;
    for (uint64_t from = entry->offset, to; from < end; from = to) {
        uint64_t unit = from / cache->tear_bytes;
        to = (unit + 1) * cache->tear_bytes;
        to = to < end ? to : end;
        if (!(mix(mix(seed, entry->number), unit) & 1))
            continue;
        int error = store_part(fd, entry, from, to);
        if (error)
            return error;
    }
    return 0;
}

int cache_power_cut(struct cache *cache, int fd, uint64_t seed)
{
    int error = 0;
    while (cache->oldest) {
        const struct entry *entry = cache->oldest;
        uint64_t fate = mix(seed, entry->number) % FATES;
        if (!error && fate == KEPT)
            error = store_part(fd, entry, entry->offset, entry->offset + entry->bytes);
        if (!error && fate == TORN)
            error = store_torn(cache, fd, entry, seed);
        drop(cache, &cache->oldest);
    }
    return error;
}
