/* cuBLAS, cuBLASLt, cuDNN, CUPTI and NCCL of the stand-in: they accept everything and do nothing.
   Where a result is asked for that PyTorch looks at, it is here; all else returns 0. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cudnn_version.h"

static int make(void **object) { return *object = calloc(1, 4096), 0; }
static int drop(void *object) { return free(object), 0; }

int cublasCreate_v2(void **h) { return make(h); }
int cublasGetVersion_v2(void *h, int *version) { return *version = 130000, 0; }
int cublasGetStream_v2(void *h, void **stream) { return *stream = NULL, 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { return *mode = 0, 0; }
int cublasGetMathMode(void *h, int *mode) { return *mode = 0, 0; }
const char *cublasGetStatusString(int status) { return "the stand-in"; }

int cublasLtCreate(void **h) { return make(h); }
int cublasLtMatmulDescCreate(void **d, int compute, int type) { return make(d); }
int cublasLtMatmulDescDestroy(void *d) { return drop(d); }
int cublasLtMatrixLayoutCreate(void **d, int type, uint64_t rows, uint64_t columns, int64_t stride) { return make(d); }
int cublasLtMatrixLayoutDestroy(void *d) { return drop(d); }
int cublasLtMatmulPreferenceCreate(void **d) { return make(d); }
int cublasLtMatmulPreferenceDestroy(void *d) { return drop(d); }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *op, void *a, void *b, void *c, void *d, void *preference, int n, void *found, int *n_found) {
  memset(found, 0, 96); /* one cublasLtMatmulHeuristicResult_t without a workspace */
  return *n_found = 1, 0;
}

int cudnnCreate(void **h) { return make(h); }
size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return 13000; }
int cudnnGetProperty(int which, int *value) {
  return *value = which == 0 ? CUDNN_MAJOR : which == 1 ? CUDNN_MINOR : CUDNN_PATCHLEVEL, 0;
}
const char *cudnnGetErrorString(int status) { return "the stand-in"; }
int cudnnBackendCreateDescriptor(int type, void **d) { return make(d); }
int cudnnBackendDestroyDescriptor(void *d) { return drop(d); }
int cudnnBackendGetAttribute(void *d, int name, int type, int64_t n, int64_t *count, void *value) {
  enum { INT64 = 3, NUMERICAL_NOTE = 11, BEHAVIOR_NOTE = 19, INT32 = 23, KNOB_CHOICES = 302 };
  if (value && n > 0 && type == INT64) *(int64_t *)value = 0; /* no workspace, engine 0 */
  if (value && n > 0 && type == INT32) *(int32_t *)value = 0;
  if (count) *count = type != NUMERICAL_NOTE && type != BEHAVIOR_NOTE && name != KNOB_CHOICES;
  return 0;
}

int cuptiActivityGetNextRecord(void *buffer, size_t size, void **record) { return 12; } /* no more */
int cuptiGetVersion(uint32_t *version) { return *version = 130000, 0; }

int ncclGetVersion(int *version) { return *version = 22809, 0; }
int ncclCommInitRankConfig(void **comm, int n, char id[128], int rank, void *config) { return make(comm); }
int ncclCommGetAsyncError(void *comm, int *error) { return *error = 0, 0; }
const char *ncclGetErrorString(int status) { return "the stand-in"; }
const char *ncclGetLastError(void *comm) { return ""; }
