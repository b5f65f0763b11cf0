/* Little-endian loads and stores, the same on every host; compilers make one instruction of
 * each. */
#ifndef NVMEFS_BYTES_H
#define NVMEFS_BYTES_H

#include <stdint.h>

static inline uint32_t load16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static inline uint32_t load32(const uint8_t *p)
{
    return load16(p) | load16(p + 2) << 16;
}

static inline uint64_t load64(const uint8_t *p)
{
    return (uint64_t)load32(p) | (uint64_t)load32(p + 4) << 32;
}

static inline void store16(uint8_t *p, uint32_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static inline void store32(uint8_t *p, uint32_t value)
{
    store16(p, value);
    store16(p + 2, value >> 16);
}

static inline void store64(uint8_t *p, uint64_t value)
{
    store32(p, (uint32_t)value);
    store32(p + 4, (uint32_t)(value >> 32));
}

#endif
