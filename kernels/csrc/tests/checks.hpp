// What the test programs share: a check that counts, and the arguments of one kernel.
#pragma once

#include <array>
#include <cstdio>
#include <string>

#include "featinv_kernels.h"

inline int failures = 0;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            ++failures;                                                                                                \
            std::fprintf(stderr, "%s:%d: failed: %s; message: %s\n", __FILE__, __LINE__, #condition,                   \
                         featinv_message());                                                                           \
        }                                                                                                              \
    } while (0)

inline bool message_says(const std::string &text) {
    return std::string(featinv_message()).find(text) != std::string::npos;
}

inline featinv_value tensor(featinv_type type, std::uintptr_t address) {
    featinv_value value{};
    value.type = type;
    value.pointer = reinterpret_cast<const void *>(address);
    return value;
}

inline featinv_value integer(std::int64_t number) {
    featinv_value value{};
    value.type = FEATINV_INTEGER;
    value.integer = number;
    return value;
}

inline featinv_value real(double number) {
    featinv_value value{};
    value.type = FEATINV_REAL;
    value.real = number;
    return value;
}

constexpr const char *kernel_name = "to_uint8_kernel";

// Of `to_uint8_kernel`: a float32 image of 256x256 pixels becomes bytes.
inline std::array<featinv_value, 8> image_arguments() {
    return {tensor(FEATINV_FLOAT32, 0x10000), tensor(FEATINV_UINT8, 0x20000), integer(3 * 65536), integer(192),
            integer(3 * 65536),               integer(65536),                 integer(1),         integer(1024)};
}
