#include "driver_double.h"

#include <stdlib.h>
#include <string.h>

#include "driver.h"

/* Prototypes of everything that is defined below, from the library's own list. */
#define PROTOTYPE(name, parameters) __attribute__((visibility("default"))) CUresult name parameters;
DRIVER_FUNCTIONS(PROTOTYPE)

__attribute__((visibility("default"))) struct double_state *double_state(void);
__attribute__((visibility("default"))) int double_launches(void);

enum { CUDA_ERROR_NOT_FOUND = 500, CUDA_ERROR_INVALID_DEVICE = 101, DEVICES = 2 };

static struct double_state state = {.capability = 80, .has_context = 1};

struct double_state *double_state(void) { return &state; }

int double_launches(void) { return state.launches; }

struct library {
    const char *code;
};

struct loaded_kernel {
    const char *code;
    char name[64];
};

static int is_machine_code(const char *code) { return memcmp(code, "\177ELF", 4) == 0; }

/* The generation stands in the flags of a cubin's header: in the lowest byte, or in newer files in the one above. */
static int target_of(const char *code) {
    uint32_t flags;
    if (!is_machine_code(code))
        return 0;
    memcpy(&flags, code + 48, sizeof flags);
    return (int)((code[7] == 0x41 ? flags >> 8 : flags) & 0xff);
}

CUresult cuInit(unsigned flags) { return flags ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS; }

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_OF_THE_DOUBLE";
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    (void)error;
    *text = "the double says so";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < DEVICES ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    (void)device;
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? state.capability / 10 : state.capability % 10;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    state.contexts_made++;
    state.context_device = device;
    *context = (CUcontext)&state;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = state.has_context ? (CUcontext)&state : NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    state.has_context = context != NULL;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = state.context_device;
    return CUDA_SUCCESS;
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, int *jit_options, void **jit_values, unsigned jits,
                           int *options, void **values, unsigned count) {
    (void)jit_options, (void)jit_values, (void)jits, (void)options, (void)values, (void)count;
    *library = malloc(sizeof **library);
    (*library)->code = code;
    state.loads++;
    return CUDA_SUCCESS;
}

CUresult cuLibraryUnload(CUlibrary library) {
    free(library);
    return CUDA_SUCCESS;
}

/* Kernels live as long as the process, as the library's do. */
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    *kernel = malloc(sizeof **kernel);
    (*kernel)->code = library->code;
    strncpy((*kernel)->name, name, sizeof(*kernel)->name - 1);
    (*kernel)->name[sizeof(*kernel)->name - 1] = '\0';
    if (target_of(library->code) == 0 && !strstr(library->code, name))
        return CUDA_ERROR_NOT_FOUND;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    *function = (CUfunction)kernel;
    if (is_machine_code(kernel->code) && state.refuses_machine_code)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    return CUDA_SUCCESS;
}

CUresult cuKernelSetAttribute(int attribute, int value, CUkernel kernel, CUdevice device) {
    (void)kernel, (void)device;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        state.allowed_shared_bytes = value;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **parameters,
                        void **extra) {
    const struct loaded_kernel *kernel = (const struct loaded_kernel *)function;
    (void)extra;
    state.launches++;
    state.target = target_of(kernel->code);
    memcpy(state.kernel, kernel->name, sizeof state.kernel);
    state.grid[0] = grid_x, state.grid[1] = grid_y, state.grid[2] = grid_z;
    state.threads = block_x * block_y * block_z;
    state.shared_bytes = shared_bytes;
    state.stream = stream;
    for (size_t i = 0; i < state.parameters; i++)
        memcpy(&state.values[i], parameters[i], sizeof state.values[i]);
    return state.launch_error;
}
