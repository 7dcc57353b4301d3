/* Which GPU is stood in for: OUTPACE_STANDIN names it, else an H100. */
#include <stdlib.h>
#include <string.h>

static const struct gpu {
  const char *called, *name;
  int major, minor, gibibytes, multiprocessors, threads, shared_memory, l2_mib, bus_width, memory_khz, clock_khz;
} GPUS[] = {
    {"H100", "NVIDIA H100 80GB HBM3", 9, 0, 79, 132, 2048, 228 << 10, 50, 5120, 2619000, 1980000},
    {"A100", "NVIDIA A100-SXM4-40GB", 8, 0, 40, 108, 2048, 164 << 10, 40, 5120, 1215000, 1410000},
    {"RTX4090", "NVIDIA GeForce RTX 4090", 8, 9, 24, 128, 1536, 100 << 10, 72, 384, 10501000, 2520000},
    {"B200", "NVIDIA B200", 10, 0, 178, 148, 2048, 228 << 10, 126, 8192, 3996000, 1965000},
    {"RTX5090", "NVIDIA GeForce RTX 5090", 12, 0, 31, 170, 1536, 100 << 10, 96, 512, 14001000, 2407000},
    {"T4", "Tesla T4", 7, 5, 15, 40, 1024, 64 << 10, 4, 256, 5001000, 1590000},
};

static const struct gpu *gpu(void) {
  const char *asked = getenv("OUTPACE_STANDIN");
  for (int i = 0; asked && i < sizeof GPUS / sizeof *GPUS; i++)
    if (!strcmp(asked, GPUS[i].called)) return &GPUS[i];
  return GPUS;
}
/* A block may have all of a multiprocessor's shared memory but 1 KiB; on Turing all of it. */
static int shared_by_a_block(void) { return gpu()->shared_memory - (gpu()->major > 7 ? 1 << 10 : 0); }
