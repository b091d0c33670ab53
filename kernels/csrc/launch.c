#include <stdlib.h>

#include "driver.h"
#include "message.h"
#include "platform.h"
#include "select.h"

/* Dynamic shared memory that every kernel may use without asking. */
#define SHARED_BYTES_UNASKED (48u * 1024u)
#define LARGEST_GRID_X 2147483647u
#define LARGEST_GRID_YZ 65535u

/* An image that was handed to the driver. Libraries belong to no context, so one serves all devices. */
struct loaded {
    CUkernel kernel;  /* NULL until it is loaded */
    CUresult refusal; /* why the driver refused it; it is not asked again */
};

static platform_lock lock = PLATFORM_LOCK;
static struct loaded *all_loaded; /* [kernels, images] */

/* What the driver says of machine code for other GPUs, and of code that was made by newer tools than it knows. */
static int is_refusal(CUresult error) {
    return error == CUDA_ERROR_INVALID_IMAGE || error == CUDA_ERROR_NO_BINARY_FOR_GPU ||
           error == CUDA_ERROR_INVALID_PTX || error == CUDA_ERROR_UNSUPPORTED_PTX_VERSION ||
           error == CUDA_ERROR_JIT_COMPILER_NOT_FOUND || error == CUDA_ERROR_JIT_COMPILATION_DISABLED;
}

static CUresult load(const struct driver *driver, const char *name, const char *code, CUkernel *kernel) {
    CUlibrary library;
    CUfunction function;
    CUresult error = driver->cuLibraryLoadData(&library, code, NULL, NULL, 0, NULL, NULL, 0);
    if (error != CUDA_SUCCESS)
        return error;
    error = driver->cuLibraryGetKernel(kernel, library, name);
    /* Libraries load lazily: only this moves the code to the device and finds out whether it fits. */
    if (error == CUDA_SUCCESS)
        error = driver->cuKernelGetFunction(&function, *kernel);
    if (error != CUDA_SUCCESS)
        driver->cuLibraryUnload(library);
    return error;
}

/* Whether machine code for `target` runs on a GPU of `capability`; of two that do, the later target is the better.
 * Within generation 8, code for an older GPU runs on a newer one. From 9.0 on Triton uses features of one GPU alone. */
static int runs_on(int target, int capability) {
    return target == capability || (target / 10 == 8 && capability / 10 == 8 && target < capability);
}

/* The next image to try after `tried` (NULL at first): machine code from the best to the worst, then PTX. */
static const struct image *next_image(const struct kernel *kernel, const struct image *tried, int capability) {
    const struct image *ptx = &kernel->images[featinv_image_count - 1];
    const struct image *best = NULL;
    if (tried == ptx)
        return NULL;
    for (const struct image *image = kernel->images; image < ptx; image++)
        if (runs_on(image->target, capability) && (!tried || image->target < tried->target) &&
            (!best || image->target > best->target))
            best = image;
    return best ? best : ptx;
}

/* Make the device's context the thread's own, unless it is already. */
static featinv_status enter(const struct driver *driver, int ordinal, CUdevice *device) {
    CUcontext context = NULL;
    CUdevice current;
    CUresult error = driver->cuDeviceGet(device, ordinal);
    if (error != CUDA_SUCCESS)
        return featinv_driver_failed(driver, error, "finding the device");
    error = driver->cuCtxGetCurrent(&context);
    if (error == CUDA_SUCCESS && !context) {
        error = driver->cuDevicePrimaryCtxRetain(&context, *device);
        if (error == CUDA_SUCCESS)
            error = driver->cuCtxSetCurrent(context);
    }
    if (error == CUDA_SUCCESS)
        error = driver->cuCtxGetDevice(&current);
    if (error != CUDA_SUCCESS)
        return featinv_driver_failed(driver, error, "finding the device's context");
    if (current != *device)
        return featinv_fail(FEATINV_INVALID_ARGUMENT,
                            "the thread's CUDA context belongs to another device; given: device %d; expected: make its "
                            "context current, with cudaSetDevice for example",
                            ordinal);
    return FEATINV_OK;
}

/* The kernel on the thread's device, and the image it came from. */
static featinv_status find_loaded(const struct driver *driver, size_t index, CUdevice device,
                                  const struct image **image, CUkernel *loaded_kernel) {
    const struct kernel *kernel = &featinv_kernels[index];
    int major = 0, minor = 0;
    CUresult refusal = CUDA_SUCCESS;
    driver->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    driver->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
    if (major < 8)
        return featinv_fail(FEATINV_UNSUPPORTED_DEVICE,
                            "the GPU is too old; given: compute capability %d.%d; expected: 8.0 or newer", major, minor);
    if (!all_loaded)
        all_loaded = calloc(featinv_kernels_count * featinv_image_count, sizeof *all_loaded);
    if (!all_loaded)
        return featinv_fail(FEATINV_DRIVER_ERROR, "out of memory");
    for (*image = next_image(kernel, NULL, 10 * major + minor); *image;
         *image = next_image(kernel, *image, 10 * major + minor)) {
        struct loaded *loaded = &all_loaded[index * featinv_image_count + (size_t)(*image - kernel->images)];
        if (!loaded->kernel && !loaded->refusal) {
            CUkernel fresh = NULL;
            CUresult error = load(driver, kernel->name, (*image)->data, &fresh);
            if (error == CUDA_SUCCESS)
                loaded->kernel = fresh;
            else if (is_refusal(error))
                loaded->refusal = error;
            else
                return featinv_driver_failed(driver, error, "loading a kernel");
        }
        if (loaded->kernel) {
            *loaded_kernel = loaded->kernel;
            return FEATINV_OK;
        }
        refusal = loaded->refusal;
    }
    featinv_driver_failed(driver, refusal, "loading every form of a kernel");
    return FEATINV_UNSUPPORTED_DEVICE;
}

/* Everything up to the launch. */
static featinv_status prepare(size_t index, int ordinal, const struct driver **driver, const struct image **image,
                              CUkernel *kernel) {
    CUdevice device;
    featinv_status status;
    CUresult error;
    if (index >= featinv_kernels_count)
        return featinv_fail(FEATINV_UNKNOWN_KERNEL, "there is no kernel of this index; given: %zu; expected: less than %zu",
                            index, featinv_kernels_count);
    *driver = featinv_driver(&status);
    if (!*driver)
        return status;
    status = enter(*driver, ordinal, &device);
    if (status != FEATINV_OK)
        return status;
    platform_acquire(&lock);
    status = find_loaded(*driver, index, device, image, kernel);
    platform_release(&lock);
    if (status != FEATINV_OK || (*image)->shared_bytes <= SHARED_BYTES_UNASKED)
        return status;
    error = (*driver)->cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                            (int)(*image)->shared_bytes, *kernel, device);
    return error == CUDA_SUCCESS ? FEATINV_OK : featinv_driver_failed(*driver, error, "asking for shared memory");
}

featinv_status featinv_prepare(size_t kernel, int device, int *target) {
    const struct driver *driver = NULL;
    const struct image *image = NULL;
    CUkernel loaded = NULL;
    featinv_status status = prepare(kernel, device, &driver, &image, &loaded);
    if (status != FEATINV_OK)
        return status;
    if (target)
        *target = image->target;
    return featinv_succeed();
}

static featinv_status check(const struct kernel *kernel, const uint32_t grid[3], const featinv_value *arguments,
                            size_t count) {
    char given[128], expected[128];
    if (!grid || !arguments)
        return featinv_fail(FEATINV_INVALID_ARGUMENT, "grid and arguments must not be NULL");
    if (grid[0] < 1 || grid[1] < 1 || grid[2] < 1 || grid[0] > LARGEST_GRID_X || grid[1] > LARGEST_GRID_YZ ||
        grid[2] > LARGEST_GRID_YZ)
        return featinv_fail(FEATINV_INVALID_ARGUMENT,
                            "the grid is empty or too large; given: [%u, %u, %u]; expected: from 1 to [%u, %u, %u]",
                            grid[0], grid[1], grid[2], LARGEST_GRID_X, LARGEST_GRID_YZ, LARGEST_GRID_YZ);
    if (count != kernel->parameter_count)
        return featinv_fail(FEATINV_INVALID_ARGUMENT, "%s has the wrong number of arguments; given: %zu; expected: %zu",
                            kernel->name, count, kernel->parameter_count);
    for (size_t i = 0; i < count; i++)
        if (!featinv_takes(&kernel->parameters[i], &arguments[i]))
            return featinv_fail(FEATINV_INVALID_ARGUMENT, "%s of %s does not fit; given: %s; expected: %s",
                                kernel->parameters[i].name, kernel->name,
                                featinv_describe_value(&arguments[i], given, sizeof given),
                                featinv_describe_parameter(&kernel->parameters[i], expected, sizeof expected));
    return FEATINV_OK;
}

featinv_status featinv_launch(size_t index, int device, void *stream, const uint32_t grid[3],
                              const featinv_value *arguments, size_t count) {
    const struct driver *driver = NULL;
    const struct image *image = NULL;
    CUkernel loaded = NULL;
    union {
        const void *pointer;
        int64_t integer;
        int32_t short_integer;
        float real;
    } values[MOST_PARAMETERS + HIDDEN_PARAMETERS] = {{NULL}};
    void *addresses[MOST_PARAMETERS + HIDDEN_PARAMETERS];
    size_t passed = 0;
    CUresult error;

    featinv_status status = index < featinv_kernels_count ? check(&featinv_kernels[index], grid, arguments, count)
                                                          : FEATINV_OK; /* prepare says what is wrong */
    if (status == FEATINV_OK)
        status = prepare(index, device, &driver, &image, &loaded);
    if (status != FEATINV_OK)
        return status;
    for (size_t i = 0; i < count; i++) {
        const struct parameter *parameter = &featinv_kernels[index].parameters[i];
        if (parameter->form == COMPILED_IN)
            continue;
        if (parameter->type == FEATINV_REAL)
            values[passed].real = (float)arguments[i].real;
        else if (parameter->type != FEATINV_INTEGER)
            values[passed].pointer = arguments[i].pointer;
        else if (parameter->form == PASSED_AS_32_BITS)
            values[passed].short_integer = (int32_t)arguments[i].integer;
        else
            values[passed].integer = arguments[i].integer;
        passed++;
    }
    for (size_t i = 0; i < passed + HIDDEN_PARAMETERS; i++)
        addresses[i] = &values[i];
    /* The driver takes a CUkernel wherever it takes a CUfunction, and finds the function of the current context. */
    error = driver->cuLaunchKernel((CUfunction)loaded, grid[0], grid[1], grid[2], image->threads, 1, 1,
                                   image->shared_bytes, stream, addresses, NULL);
    return error == CUDA_SUCCESS ? featinv_succeed() : featinv_driver_failed(driver, error, featinv_kernels[index].name);
}
