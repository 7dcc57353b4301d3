/* libcudart.so.13 of the stand-in: memory is the host's, copies are real, kernels do nothing. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "gpu.h"

#define MEMORY ((size_t)gpu()->gibibytes << 30)
#define LARGEST_COPY (32ull << 20) /* on the device; what is larger is activations: nobody reads it */
#define LARGEST_FILL (1ull << 20)
enum { ELSEWHERE, HOST, DEVICE };

static struct { char *at; size_t size; int kind; } regions[1 << 17];
static int n_regions;
static size_t in_use;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread cudaError_t last;

static void note(void *at, size_t size, int kind) {
  regions[n_regions].at = at;
  regions[n_regions].size = size;
  regions[n_regions++].kind = kind;
}

static cudaError_t take(void **at, size_t size, int kind) {
  cudaError_t result = cudaErrorMemoryAllocation;
  size += size == 0;
  pthread_mutex_lock(&lock);
  *at = NULL;
  if (kind == HOST || in_use + size <= MEMORY) {
    /* Pages exist when they are touched, so they cost nothing. */
    *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    in_use += kind == DEVICE ? size : 0;
    note(*at, size, kind);
    result = cudaSuccess;
  }
  pthread_mutex_unlock(&lock);
  return last = result;
}

static int find(const void *p) { /* with the lock */
  for (int i = 0; i < n_regions; i++)
    if ((char *)p >= regions[i].at && (char *)p < regions[i].at + regions[i].size) return i;
  return -1;
}

static cudaError_t give_back(void *p, int mapped) {
  pthread_mutex_lock(&lock);
  int i = find(p);
  if (i >= 0) {
    in_use -= regions[i].kind == DEVICE ? regions[i].size : 0;
    if (mapped) munmap(p, regions[i].size);
    regions[i] = regions[--n_regions];
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

static int kind_of(const void *p) {
  pthread_mutex_lock(&lock);
  int i = find(p), kind = i < 0 ? ELSEWHERE : regions[i].kind;
  pthread_mutex_unlock(&lock);
  return kind;
}

cudaError_t cudaMalloc(void **p, size_t n) { return take(p, n, DEVICE); }
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return take(p, n, DEVICE); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return take(p, n, HOST); }
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { return take(p, 4096, DEVICE); }
cudaError_t cudaFree(void *p) { return give_back(p, 1); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return give_back(p, 1); }
cudaError_t cudaFreeHost(void *p) { return give_back(p, 1); }
cudaError_t cudaHostUnregister(void *p) { return give_back(p, 0); }
cudaError_t cudaHostRegister(void *p, size_t n, unsigned flags) {
  pthread_mutex_lock(&lock);
  note(p, n, HOST);
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *total = MEMORY;
  *free = MEMORY - in_use;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  int kind = kind_of(p);
  memset(a, 0, sizeof *a);
  a->type = kind == DEVICE ? cudaMemoryTypeDevice : kind == HOST ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->devicePointer = kind == DEVICE ? (void *)p : NULL;
  a->hostPointer = kind == HOST ? (void *)p : NULL;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  if (n <= LARGEST_COPY || kind_of(to) != DEVICE || kind_of(from) != DEVICE) memmove(to, from, n);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
  return cudaMemcpy(to, from, n, kind);
}
cudaError_t cudaMemset(void *p, int value, size_t n) {
  if (n <= LARGEST_FILL) memset(p, value, n);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { return cudaMemset(p, value, n); }

cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *id, int n, int device) { return snprintf(id, n, "0000:01:00.0"), cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, gpu()->name);
  p->totalGlobalMem = MEMORY;
  p->major = gpu()->major;
  p->minor = gpu()->minor;
  p->multiProcessorCount = gpu()->multiprocessors;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = gpu()->threads;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = shared_by_a_block();
  p->sharedMemPerMultiprocessor = gpu()->shared_memory;
  p->l2CacheSize = gpu()->l2_mib << 20;
  p->memoryBusWidth = gpu()->bus_width;
  p->asyncEngineCount = 3;
  p->concurrentKernels = p->cooperativeLaunch = p->unifiedAddressing = p->ECCEnabled = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = gpu()->multiprocessors; break;
    case cudaDevAttrComputeCapabilityMajor: *value = gpu()->major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = gpu()->minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_by_a_block(); break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = gpu()->threads; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrClockRate: *value = gpu()->clock_khz; break;
    case cudaDevAttrMemoryClockRate: *value = gpu()->memory_khz; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = gpu()->bus_width; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

static void *handle(void) {
  static uintptr_t n = 0x1000;
  return (void *)(n += 16);
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return *s = handle(), cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return *s = handle(), cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { return *least = 0, *most = -5, cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) { return *status = 0, cudaSuccess; }
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
    cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *n) {
  return *status = 0, cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { return *pool = handle(), cudaSuccess; }

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { return *e = calloc(1, sizeof(double)), cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return free(e), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return *(double *)e = now_ms(), cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return cudaEventRecord(e, s); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
  return *ms = *(double *)b - *(double *)a + 1e-3, cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared, unsigned flags) {
  return *n = 2, cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) { return f(data), cudaSuccess; }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *data, unsigned flags) {
  return f(s, cudaSuccess, data), cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  return last = cudaSuccess, error;
}
cudaError_t cudaPeekAtLastError(void) { return last; }
const char *cudaGetErrorName(cudaError_t e) { return e ? "cudaErrorMemoryAllocation" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t e) { return e ? "out of memory" : "no error"; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *found) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  *f = driver ? dlsym(driver, name) : NULL;
  if (found) *found = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

/* What nvcc puts around kernels. */
static __thread struct { dim3 grid, block; size_t shared; void *stream; } call;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  call.grid = grid, call.block = block, call.shared = shared, call.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = call.grid, *block = call.block, *shared = call.shared, *(void **)stream = call.stream;
  return cudaSuccess;
}
void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
void __cudaRegisterFatBinaryEnd(void **binary) {}
void __cudaUnregisterFatBinary(void **binary) {}
void __cudaRegisterFunction(void **a, const char *b, char *c, const char *d, int e, void *f, void *g, void *h, void *i, int *j) {}
void __cudaRegisterVar(void **a, char *b, char *c, const char *d, int e, size_t f, int g, int h) {}
cudaError_t __cudaGetKernel(void *kernel, const void *f) { return *(const void **)kernel = f, cudaSuccess; }
cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) { return cudaSuccess; }
