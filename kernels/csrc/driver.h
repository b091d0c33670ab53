/* The few entry points of the CUDA driver that are used, declared here so that no CUDA header is needed.
 *
 * Names, types and numbers are those of the CUDA driver API reference; handles are opaque pointers.
 */
#ifndef FEATINV_DRIVER_H
#define FEATINV_DRIVER_H

#include "featinv_kernels.h"

typedef int CUresult;
typedef int CUdevice;
typedef struct context *CUcontext;
typedef struct library *CUlibrary;
typedef struct loaded_kernel *CUkernel;
typedef struct function *CUfunction;
typedef struct stream *CUstream;

enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_INVALID_PTX = 218,
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
    CUDA_ERROR_JIT_COMPILER_NOT_FOUND = 221,
    CUDA_ERROR_JIT_COMPILATION_DISABLED = 223,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
};

/* X(result, name, parameters): kept in one list so that declaration and look-up cannot drift apart. */
#define DRIVER_FUNCTIONS(X)                                                                                            \
    X(cuInit, (unsigned flags))                                                                                        \
    X(cuGetErrorName, (CUresult error, const char **name))                                                             \
    X(cuGetErrorString, (CUresult error, const char **text))                                                           \
    X(cuDeviceGet, (CUdevice * device, int ordinal))                                                                   \
    X(cuDeviceGetAttribute, (int *value, int attribute, CUdevice device))                                              \
    X(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                                \
    X(cuCtxGetCurrent, (CUcontext * context))                                                                          \
    X(cuCtxSetCurrent, (CUcontext context))                                                                            \
    X(cuCtxGetDevice, (CUdevice * device))                                                                             \
    X(cuLibraryLoadData, (CUlibrary * library, const void *code, int *jit_options, void **jit_values, unsigned jits,   \
                          int *options, void **values, unsigned count))                                                \
    X(cuLibraryUnload, (CUlibrary library))                                                                            \
    X(cuLibraryGetKernel, (CUkernel * kernel, CUlibrary library, const char *name))                                    \
    X(cuKernelGetFunction, (CUfunction * function, CUkernel kernel))                                                   \
    X(cuKernelSetAttribute, (int attribute, int value, CUkernel kernel, CUdevice device))                              \
    X(cuLaunchKernel, (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,       \
                       unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters,  \
                       void **extra))

struct driver {
#define MEMBER(name, parameters) CUresult(*name) parameters;
    DRIVER_FUNCTIONS(MEMBER)
#undef MEMBER
};

/* The driver, started; NULL with `status` and a message where there is none. */
const struct driver *featinv_driver(featinv_status *status);

/* FEATINV_DRIVER_ERROR with a message: what was tried and what the driver says about `error`. */
featinv_status featinv_driver_failed(const struct driver *driver, CUresult error, const char *what);

#endif
