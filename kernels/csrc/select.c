#include "select.h"

#include <stdio.h>
#include <string.h>

#include "message.h"

static const char *const type_names[] = {"nothing", "integer", "real",    "float32 tensor",
                                         "float16 tensor", "bfloat16 tensor", "uint8 tensor"};
enum { TYPES = sizeof type_names / sizeof *type_names };

static int is_tensor(int type) { return type >= FEATINV_FLOAT32; }

static int is_multiple_of_16(const featinv_value *value) {
    return is_tensor(value->type) ? (uintptr_t)value->pointer % 16 == 0 : value->integer % 16 == 0;
}

int featinv_takes(const struct parameter *parameter, const featinv_value *value) {
    if ((int32_t)parameter->type != value->type)
        return 0;
    if (parameter->form == COMPILED_IN) {
        if (value->type == FEATINV_INTEGER)
            return parameter->integer == value->integer;
        return value->type != FEATINV_REAL || parameter->real == value->real;
    }
    if (value->type == FEATINV_INTEGER && parameter->form == PASSED_AS_32_BITS &&
        (value->integer < INT32_MIN || value->integer > INT32_MAX))
        return 0;
    return !parameter->multiple_of_16 || is_multiple_of_16(value);
}

const char *featinv_describe_value(const featinv_value *value, char *buffer, size_t size) {
    if (value->type < 0 || value->type >= TYPES)
        snprintf(buffer, size, "a value of the unknown type %d", (int)value->type);
    else if (value->type == FEATINV_INTEGER)
        snprintf(buffer, size, "integer %lld", (long long)value->integer);
    else if (value->type == FEATINV_REAL)
        snprintf(buffer, size, "real %.9g", value->real);
    else
        snprintf(buffer, size, "%s%s", type_names[value->type],
                 is_tensor(value->type) && !is_multiple_of_16(value) ? " at an address that is no multiple of 16" : "");
    return buffer;
}

const char *featinv_describe_parameter(const struct parameter *parameter, char *buffer, size_t size) {
    if (parameter->form == COMPILED_IN) {
        featinv_value value = {.type = (int32_t)parameter->type, .integer = parameter->integer};
        if (parameter->type == FEATINV_REAL)
            value.real = parameter->real;
        return featinv_describe_value(&value, buffer, size);
    }
    snprintf(buffer, size, "%s%s%s", type_names[parameter->type],
             parameter->type == FEATINV_INTEGER && parameter->form == PASSED_AS_32_BITS ? " of 32 bits" : "",
             !parameter->multiple_of_16    ? ""
             : is_tensor(parameter->type) ? " at a multiple of 16"
                                           : " that is a multiple of 16");
    return buffer;
}

/* How many assumptions the machine code makes; more of them make it faster. */
static size_t assumptions(const struct kernel *kernel) {
    size_t count = 0;
    for (size_t i = 0; i < kernel->parameter_count; i++)
        count += kernel->parameters[i].form == COMPILED_IN || kernel->parameters[i].multiple_of_16;
    return count;
}

/* The first parameter whose value does not fit; parameter_count if all fit. */
static size_t first_misfit(const struct kernel *kernel, const featinv_value *arguments) {
    size_t i = 0;
    while (i < kernel->parameter_count && featinv_takes(&kernel->parameters[i], &arguments[i]))
        i++;
    return i;
}

static featinv_status unknown_kernel(const char *name) {
    char names[700] = "";
    const char *last = "";
    for (size_t i = 0; i < featinv_kernels_count; i++) {
        /* the table is sorted by name */
        size_t used = strlen(names);
        if (strcmp(featinv_kernels[i].name, last) != 0)
            snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", featinv_kernels[i].name);
        last = featinv_kernels[i].name;
    }
    return featinv_fail(FEATINV_UNKNOWN_KERNEL, "there is no kernel of this name; given: %s; expected: %s", name,
                        names[0] ? names : "none, for this library was built without kernels");
}

featinv_status featinv_find(const char *name, const featinv_value *arguments, size_t count, size_t *found) {
    const struct kernel *best = NULL;
    const struct kernel *closest = NULL;
    size_t misfit = 0;
    char given[128], expected[128];

    if (!name || !found || (!arguments && count))
        return featinv_fail(FEATINV_INVALID_ARGUMENT, "name, arguments and kernel must not be NULL");
    for (size_t i = 0; i < featinv_kernels_count; i++) {
        const struct kernel *kernel = &featinv_kernels[i];
        if (strcmp(kernel->name, name) != 0)
            continue;
        if (kernel->parameter_count != count)
            return featinv_fail(FEATINV_INVALID_ARGUMENT, "%s has the wrong number of arguments; given: %zu; expected: %zu",
                                name, count, kernel->parameter_count);
        size_t position = first_misfit(kernel, arguments);
        if (position == count) {
            if (!best || assumptions(kernel) > assumptions(best))
                best = kernel;
        } else if (!closest || position > misfit) {
            closest = kernel;
            misfit = position;
        }
    }
    if (best) {
        *found = (size_t)(best - featinv_kernels);
        return featinv_succeed();
    }
    if (!closest)
        return unknown_kernel(name);
    return featinv_fail(FEATINV_NOT_COMPILED,
                        "%s is not compiled for these arguments; given: %s is %s; expected, in the closest one: %s",
                        name, closest->parameters[misfit].name,
                        featinv_describe_value(&arguments[misfit], given, sizeof given),
                        featinv_describe_parameter(&closest->parameters[misfit], expected, sizeof expected));
}

int featinv_interface(void) { return FEATINV_INTERFACE; }

size_t featinv_kernel_count(void) { return featinv_kernels_count; }

const char *featinv_kernel_description(size_t kernel) {
    return kernel < featinv_kernels_count ? featinv_kernels[kernel].description : NULL;
}
