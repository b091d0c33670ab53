#include "driver.h"

#include <string.h>

#include "message.h"
#include "platform.h"

static platform_lock lock = PLATFORM_LOCK;
static struct driver driver;
static int started;

/* A driver that fails to start is tried again next time: it may be installed, or a device appear, while we run. */
static featinv_status start(void) {
    char buffer[64];
    CUresult error;
    void *library = platform_open(DRIVER_LIBRARY);
    if (!library)
        return featinv_fail(FEATINV_NO_DRIVER,
                            "no driver: the NVIDIA driver (" DRIVER_LIBRARY ") cannot be loaded: %s; install it, or "
                            "use another provider",
                            platform_open_error(buffer, sizeof buffer));
/* An object pointer becomes a function pointer: copied, as POSIX suggests, since C has no cast for it. */
#define LOOK_UP(name, parameters)                                                                                      \
    {                                                                                                                  \
        void *symbol = platform_symbol(library, #name);                                                                \
        if (!symbol)                                                                                                   \
            return featinv_fail(FEATINV_NO_DRIVER,                                                                     \
                                "the NVIDIA driver is too old: it has no " #name "; 525 or newer is needed");          \
        memcpy(&driver.name, &symbol, sizeof symbol);                                                                  \
    }
    DRIVER_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    error = driver.cuInit(0);
    if (error != CUDA_SUCCESS)
        return featinv_driver_failed(&driver, error, "starting the NVIDIA driver");
    started = 1;
    return featinv_succeed();
}

const struct driver *featinv_driver(featinv_status *status) {
    platform_acquire(&lock);
    *status = started ? FEATINV_OK : start();
    platform_release(&lock);
    return *status == FEATINV_OK ? &driver : NULL;
}

featinv_status featinv_driver_failed(const struct driver *used, CUresult error, const char *what) {
    const char *name = NULL;
    const char *text = NULL;
    used->cuGetErrorName(error, &name);
    used->cuGetErrorString(error, &text);
    return featinv_fail(FEATINV_DRIVER_ERROR, "%s failed: %s (%d), %s", what, name ? name : "unknown error", error,
                        text ? text : "which the driver does not explain");
}

featinv_status featinv_start_driver(void) {
    featinv_status status;
    return featinv_driver(&status) ? featinv_succeed() : status;
}
