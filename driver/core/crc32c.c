/* CRC-32C by the CPU's own instruction where there is one, found at run time, else by slicing tables.
 *
 * The instruction takes 3 cycles and one can start each cycle, so a single chain leaves two thirds of the unit idle.
 * Blocks of 3 x 1,344 bytes (4,032 of a 4 KiB metadata block) are therefore done as three independent chains and
 * joined by the operator "append n zero bytes", which is linear and kept as 4 x 256 words.
 */
#include "crc32c.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0x82F63B78u
#define STRIDE 1344u /* bytes per chain; a multiple of 8 */

static uint32_t table[8][256];
static uint32_t shift_one[4][256]; /* crc -> crc after STRIDE zero bytes */
static uint32_t (*fastest)(uint32_t, const uint8_t *, size_t);
static const char *method = "table";
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t by_table(uint32_t crc, const uint8_t *p, size_t n)
{
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        w = __builtin_bswap64(w);
#endif
        w ^= crc;
        crc = table[7][w & 0xff] ^ table[6][(w >> 8) & 0xff] ^ table[5][(w >> 16) & 0xff] ^ table[4][(w >> 24) & 0xff] ^
              table[3][(w >> 32) & 0xff] ^ table[2][(w >> 40) & 0xff] ^ table[1][(w >> 48) & 0xff] ^ table[0][w >> 56];
    }
    while (n--)
        crc = table[0][(crc ^ *p++) & 0xff] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
#define TARGET __attribute__((target("sse4.2")))
#define STEP8(crc, w) ((uint32_t)_mm_crc32_u64((crc), (w)))
#define STEP1(crc, b) _mm_crc32_u8((crc), (b))
#define HAVE_FAST 1
static int fast_supported(void)
{
    method = "sse4.2";
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__) && defined(__linux__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define TARGET __attribute__((target("+crc")))
#define STEP8(crc, w) __crc32cd((crc), (w))
#define STEP1(crc, b) __crc32cb((crc), (b))
#define HAVE_FAST 1
static int fast_supported(void)
{
    method = "armv8-crc";
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
}
#endif

#ifdef HAVE_FAST
static inline uint64_t load8(const uint8_t *p)
{
    uint64_t w;
    memcpy(&w, p, 8);
    return w;
}

static inline uint32_t shift(uint32_t crc)
{
    return shift_one[0][crc & 0xff] ^ shift_one[1][(crc >> 8) & 0xff] ^ shift_one[2][(crc >> 16) & 0xff] ^ shift_one[3][crc >> 24];
}

TARGET static uint32_t by_instruction(uint32_t crc, const uint8_t *p, size_t n)
{
    for (; n >= 3 * STRIDE; n -= 3 * STRIDE, p += 3 * STRIDE) {
        uint32_t a = crc, b = 0, c = 0;
        for (size_t i = 0; i < STRIDE; i += 8) {
            a = STEP8(a, load8(p + i));
            b = STEP8(b, load8(p + STRIDE + i));
            c = STEP8(c, load8(p + 2 * STRIDE + i));
        }
        crc = shift(shift(a) ^ b) ^ c;
    }
    for (; n >= 8; n -= 8, p += 8)
        crc = STEP8(crc, load8(p));
    while (n--)
        crc = STEP1(crc, *p++);
    return crc;
}
#endif

static void prepare(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1)));
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] = table[0][table[k - 1][i] & 0xff] ^ (table[k - 1][i] >> 8);
    fastest = by_table;
    method = "table";
#ifdef HAVE_FAST
    static const uint8_t zeroes[STRIDE];
    for (int k = 0; k < 4; k++)
        for (uint32_t i = 0; i < 256; i++)
            shift_one[k][i] = by_table(i << (8 * k), zeroes, STRIDE);
    if (fast_supported())
        fastest = by_instruction;
    else
        method = "table";
#endif
}

uint32_t nv_crc32c(uint32_t seed, const void *data, size_t length)
{
    pthread_once(&once, prepare);
    return ~fastest(~seed, data, length);
}

uint32_t nv_crc32c_table(uint32_t seed, const void *data, size_t length)
{
    pthread_once(&once, prepare);
    return ~by_table(~seed, data, length);
}

const char *nv_crc32c_method(void)
{
    pthread_once(&once, prepare);
    return method;
}
