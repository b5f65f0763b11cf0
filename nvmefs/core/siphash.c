/* The contract of each function stands above it. */
#include "siphash.h"

#include "bytes.h"

typedef struct {
    uint64_t v0, v1, v2, v3;
} sip_state;

static inline uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static inline void sip_round(sip_state *s)
{
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = rotate(s->v1, 13) ^ s->v0;
    s->v3 = rotate(s->v3, 16) ^ s->v2;
    s->v0 = rotate(s->v0, 32);
    s->v2 += s->v1;
    s->v0 += s->v3;
    s->v1 = rotate(s->v1, 17) ^ s->v2;
    s->v3 = rotate(s->v3, 21) ^ s->v0;
    s->v2 = rotate(s->v2, 32);
}

static inline void sip_word(sip_state *s, uint64_t word)
{
    s->v3 ^= word;
    sip_round(s);
    sip_round(s);
    s->v0 ^= word;
}

static sip_state sip_start(const uint8_t *key)
{
    uint64_t k0 = load64(key), k1 = load64(key + 8);
    return (sip_state){
        k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d,
        k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573,
    };
}

/* Take in `data`, of a message that has `before` bytes (a multiple of 8) in front of it, and
 * finish. */
static uint64_t sip_finish(sip_state s, size_t before, const uint8_t *data, size_t length)
{
    uint64_t last = (uint64_t)(before + length) << 56;
    size_t at = 0;
    for (; length - at >= 8; at += 8)
        sip_word(&s, load64(data + at));
    for (int shift = 0; at < length; at++, shift += 8)
        last |= (uint64_t)data[at] << shift;
    sip_word(&s, last);
    s.v2 ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

/* The hash of `length` bytes under a key of 16 bytes. */
uint64_t siphash(const uint8_t *key, const uint8_t *data, size_t length)
{
    return sip_finish(sip_start(key), 0, data, length);
}

/* The same of `prefix`, as 8 bytes little-endian, followed by the data. */
uint64_t siphash_prefixed(const uint8_t *key, uint64_t prefix, const uint8_t *data, size_t length)
{
    sip_state s = sip_start(key);
    sip_word(&s, prefix);
    return sip_finish(s, 8, data, length);
}
