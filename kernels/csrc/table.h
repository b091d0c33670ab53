/* The table of compiled kernels: native_build.py writes it, the library reads it. */
#ifndef FEATINV_TABLE_H
#define FEATINV_TABLE_H

#include "featinv_kernels.h"

/* Where a parameter's value is when the kernel runs. */
enum form {
    COMPILED_IN, /* `integer`, `real` or nothing, by its type */
    PASSED_AS_32_BITS,
    PASSED_AS_64_BITS,
};

struct parameter {
    const char *name;
    featinv_type type;
    enum form form;
    int multiple_of_16; /* the machine code relies on it */
    int64_t integer;
    double real;
};

struct image {
    const char *data; /* a cubin, or PTX that ends with a 0 byte */
    int target;       /* 10 * major + minor of the compute capability; 0 is PTX for 8.0 */
    uint32_t threads;
    uint32_t shared_bytes;
};

struct kernel {
    const char *name;
    const char *description;
    const struct parameter *parameters;
    size_t parameter_count;
    const struct image *images; /* featinv_image_count of them, every kernel's in the same order, PTX last */
};

extern const struct kernel featinv_kernels[];
extern const size_t featinv_kernels_count;
extern const size_t featinv_image_count;

/* The scratch memory that compiled kernels expect as their last two parameters, and never use in this library. */
#define HIDDEN_PARAMETERS 2
#define MOST_PARAMETERS 64

#endif
