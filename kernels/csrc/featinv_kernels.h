/* The fused kernels of featinv_kernels as machine code, with a flat C interface.
 *
 * The library holds compiled forms of each kernel: one for each combination of argument types and compile-time values
 * that the ops ask for, for several GPU generations, and as PTX for all others. It needs neither CUDA nor Triton, only
 * the NVIDIA driver (525 or newer), which it loads when it is first asked for a GPU.
 *
 *     size_t kernel;
 *     featinv_value arguments[] = {{FEATINV_FLOAT16, .pointer = image}, {FEATINV_UINT8, .pointer = bytes}, ...};
 *     if (featinv_find("to_uint8_kernel", arguments, 8, &kernel) != FEATINV_OK ||
 *         featinv_launch(kernel, device, stream, grid, arguments, 8) != FEATINV_OK)
 *         fputs(featinv_message(), stderr);
 *
 * Which arguments and which grid a kernel takes stands in the op's triton_kernel.py, whose launcher is the example to
 * follow: the arguments here are all of the kernel's parameters in their order, compile-time values included.
 *
 * Every function may be called from any thread.
 */
#ifndef FEATINV_KERNELS_H
#define FEATINV_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(FEATINV_BUILDING)
#define FEATINV_API __declspec(dllexport)
#elif defined(_WIN32)
#define FEATINV_API __declspec(dllimport)
#else
#define FEATINV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a caller of an older library would no longer be understood. */
#define FEATINV_INTERFACE 1

typedef enum featinv_status {
    FEATINV_OK = 0,
    FEATINV_NO_DRIVER = 1,          /* the NVIDIA driver is missing or older than 525 */
    FEATINV_UNKNOWN_KERNEL = 2,     /* no kernel has this name or index */
    FEATINV_INVALID_ARGUMENT = 3,   /* wrong number of arguments, wrong type, wrong grid, ... */
    FEATINV_NOT_COMPILED = 4,       /* the kernel is here, but not for these types and values */
    FEATINV_UNSUPPORTED_DEVICE = 5, /* the GPU is older than compute capability 8.0, or refuses every form */
    FEATINV_DRIVER_ERROR = 6,       /* the driver reports an error */
} featinv_status;

typedef enum featinv_type {
    FEATINV_NONE = 0,     /* an absent tensor */
    FEATINV_INTEGER = 1,  /* `integer`; truth values are 0 and 1 */
    FEATINV_REAL = 2,     /* `real`; kernels take it as float */
    FEATINV_FLOAT32 = 3,  /* `pointer` to device memory, and so on */
    FEATINV_FLOAT16 = 4,
    FEATINV_BFLOAT16 = 5,
    FEATINV_UINT8 = 6,
} featinv_type;

typedef struct featinv_value {
    int32_t type; /* a featinv_type */
    union {
        const void *pointer;
        int64_t integer;
        double real;
    };
} featinv_value;

/* FEATINV_INTERFACE of the library. */
FEATINV_API int featinv_interface(void);

/* Why the last call in this thread failed: what was given and what was expected. "" if it did not. */
FEATINV_API const char *featinv_message(void);

/* How many compiled kernels there are. */
FEATINV_API size_t featinv_kernel_count(void);

/* Everything about a compiled kernel as JSON: {"kernel", "op", "parameters": [...], "images": [...]}; NULL if there is
 * no such index. Parameters have "name" and "type", and either "value" (compiled in) or "multiple_of_16"; images have
 * "target" ("sm_90", "ptx"), "bytes", "threads" and "shared_bytes". */
FEATINV_API const char *featinv_kernel_description(size_t kernel);

/* The compiled kernel that serves these arguments best: the one with the most assumptions that hold (integers that are
 * 1, addresses and integers that are multiples of 16). Needs no GPU.
 * FEATINV_UNKNOWN_KERNEL, FEATINV_INVALID_ARGUMENT, FEATINV_NOT_COMPILED. */
FEATINV_API featinv_status featinv_find(const char *name, const featinv_value *arguments, size_t count, size_t *kernel);

/* Load and start the driver. FEATINV_NO_DRIVER, FEATINV_DRIVER_ERROR. */
FEATINV_API featinv_status featinv_start_driver(void);

/* Load a kernel onto a device, which its first launch otherwise does: before a CUDA graph is captured, say. `target`
 * (may be NULL) receives the generation it was compiled for, such as 90, or 0 where the driver compiled it from PTX:
 * GPUs without machine code of their own, and drivers that are too old for it.
 * FEATINV_NO_DRIVER, FEATINV_UNKNOWN_KERNEL, FEATINV_UNSUPPORTED_DEVICE, FEATINV_DRIVER_ERROR. */
FEATINV_API featinv_status featinv_prepare(size_t kernel, int device, int *target);

/* Put a kernel into a stream (a cudaStream_t or CUstream; NULL is the default one) with `grid` programs along three
 * axes. The calling thread's CUDA context must be the device's; if it has none, the device's primary context becomes
 * its context. Addresses are not checked.
 * Any status of featinv_prepare, and FEATINV_INVALID_ARGUMENT. */
FEATINV_API featinv_status featinv_launch(size_t kernel, int device, void *stream, const uint32_t grid[3],
                                          const featinv_value *arguments, size_t count);

#ifdef __cplusplus
}
#endif
#endif
