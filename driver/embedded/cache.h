/*
 * A volatile write cache between commands and the image, whose content a power cut can take away.
 * cache.c begins with what it promises. All functions return 0 or a negative errno.
 */
#ifndef EMBEDDED_CACHE_H
#define EMBEDDED_CACHE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct cache;

/* tear_bytes: what survives a power cut as a whole, 512 or the LBA size. NULL: no memory. */
struct cache *cache_new(uint32_t tear_bytes);
void cache_free(struct cache *cache);

int cache_write(struct cache *cache, int fd, const struct iovec *vectors, uint32_t count, uint64_t offset);
int cache_zero(struct cache *cache, int fd, uint64_t offset, uint64_t bytes);
/* Lays what the cache holds of [offset, ...) over what was read from the image. */
void cache_overlay(const struct cache *cache, const struct iovec *vectors, uint32_t count, uint64_t offset);
/* The range is about to be written durably: what the cache holds of it is superseded. */
int cache_supersede(struct cache *cache, uint64_t offset, uint64_t bytes);
/* Everything to the image. */
int cache_write_back(struct cache *cache, int fd);
/* Some of it to the image, chosen by the seed; the rest is lost. */
int cache_power_cut(struct cache *cache, int fd, uint64_t seed);

#endif
