/* What differs between operating systems: loading a shared library, and a lock. */
#ifndef FEATINV_PLATFORM_H
#define FEATINV_PLATFORM_H

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <stdio.h>
#include <windows.h>

#define DRIVER_LIBRARY "nvcuda.dll"

static inline void *platform_open(const char *name) {
    return (void *)LoadLibraryExA(name, NULL, LOAD_LIBRARY_SEARCH_SYSTEM32);
}

static inline void *platform_symbol(void *library, const char *name) {
    return (void *)GetProcAddress((HMODULE)library, name);
}

static inline const char *platform_open_error(char *buffer, size_t size) {
    snprintf(buffer, size, "Windows error %lu", GetLastError());
    return buffer;
}

typedef SRWLOCK platform_lock;
#define PLATFORM_LOCK SRWLOCK_INIT
static inline void platform_acquire(platform_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline void platform_release(platform_lock *lock) { ReleaseSRWLockExclusive(lock); }

#else

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

#define DRIVER_LIBRARY "libcuda.so.1"

static inline void *platform_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }

static inline void *platform_symbol(void *library, const char *name) { return dlsym(library, name); }

static inline const char *platform_open_error(char *buffer, size_t size) {
    const char *error = dlerror();
    (void)buffer;
    (void)size;
    return error ? error : "unknown error";
}

typedef pthread_mutex_t platform_lock;
#define PLATFORM_LOCK PTHREAD_MUTEX_INITIALIZER
static inline void platform_acquire(platform_lock *lock) { pthread_mutex_lock(lock); }
static inline void platform_release(platform_lock *lock) { pthread_mutex_unlock(lock); }

#endif
#endif
