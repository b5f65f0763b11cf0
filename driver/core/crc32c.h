/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78, initial and final xor all-ones).
 *
 * Self-contained: crc32c.c and this header may be compiled into any extension.
 * Chaining: crc32c(b, crc32c(a, 0)) == crc32c(a followed by b, 0).
 */
#ifndef NV_CRC32C_H
#define NV_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t nv_crc32c(uint32_t seed, const void *data, size_t length);

/* The portable implementation, always compiled: the oracle of the fast one. */
uint32_t nv_crc32c_table(uint32_t seed, const void *data, size_t length);

/* "sse4.2", "armv8-crc" or "table": what nv_crc32c() uses on this machine. */
const char *nv_crc32c_method(void);

#endif
