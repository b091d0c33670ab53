// The interface as C++ sees it: the table, the choice of a kernel, refusals, and the answer without a driver.

#include <cstdlib>
#include <cstring>

#include "checks.hpp"

static void test_table() {
    CHECK(featinv_interface() == FEATINV_INTERFACE);
    CHECK(featinv_kernel_count() > 0);
    for (std::size_t i = 0; i < featinv_kernel_count(); ++i) {
        const char *description = featinv_kernel_description(i);
        CHECK(std::strncmp(description, "{\"kernel\": \"", 12) == 0);
        CHECK(std::strstr(description, "\"target\": \"ptx\"") != nullptr);
    }
    CHECK(featinv_kernel_description(featinv_kernel_count()) == nullptr);
}

static void test_find() {
    auto arguments = image_arguments();
    std::size_t aligned = 0, misaligned = 0;
    CHECK(featinv_find(kernel_name, arguments.data(), arguments.size(), &aligned) == FEATINV_OK);
    CHECK(std::string(featinv_message()).empty());

    // A tensor at an odd address needs a form that assumes less.
    arguments[0].pointer = reinterpret_cast<const void *>(0x10004);
    CHECK(featinv_find(kernel_name, arguments.data(), arguments.size(), &misaligned) == FEATINV_OK);
    CHECK(aligned != misaligned);
    CHECK(std::strstr(featinv_kernel_description(aligned), "\"multiple_of_16\": true") != nullptr);
    CHECK(std::strstr(featinv_kernel_description(misaligned), "\"multiple_of_16\": true") == nullptr);
}

static void test_find_refuses() {
    auto arguments = image_arguments();
    std::size_t kernel = 7;
    CHECK(featinv_find("no_such_kernel", arguments.data(), arguments.size(), &kernel) == FEATINV_UNKNOWN_KERNEL);
    CHECK(message_says("given: no_such_kernel") && message_says(kernel_name));

    CHECK(featinv_find(kernel_name, arguments.data(), 3, &kernel) == FEATINV_INVALID_ARGUMENT);
    CHECK(message_says("given: 3; expected: 8"));
    CHECK(featinv_find(nullptr, arguments.data(), 8, &kernel) == FEATINV_INVALID_ARGUMENT);
    CHECK(featinv_find(kernel_name, nullptr, 8, &kernel) == FEATINV_INVALID_ARGUMENT);
    CHECK(featinv_find(kernel_name, arguments.data(), 8, nullptr) == FEATINV_INVALID_ARGUMENT);

    const auto refuses = [&](std::size_t position, featinv_value value, const char *given, const char *expected) {
        auto changed = image_arguments();
        changed[position] = value;
        CHECK(featinv_find(kernel_name, changed.data(), changed.size(), &kernel) == FEATINV_NOT_COMPILED);
        CHECK(message_says(given) && message_says(expected));
    };
    refuses(1, tensor(FEATINV_FLOAT32, 0x20000), "given: p_bytes is float32 tensor", "uint8 tensor");
    refuses(2, real(1.5), "given: size is real 1.5", "integer of 32 bits");
    refuses(2, integer(std::int64_t{1} << 40), "given: size is integer 1099511627776", "integer of 32 bits");
    refuses(7, integer(7), "given: BLOCK is integer 7", "integer 1024");
    featinv_value unknown{};
    unknown.type = 99;
    refuses(0, unknown, "given: p_image is a value of the unknown type 99", "tensor");
    CHECK(kernel == 7);
}

static void test_launch_refuses() {
    const auto arguments = image_arguments();
    const std::uint32_t grid[3] = {192, 1, 1};
    std::size_t kernel = 0;
    CHECK(featinv_find(kernel_name, arguments.data(), arguments.size(), &kernel) == FEATINV_OK);

    CHECK(featinv_launch(featinv_kernel_count(), 0, nullptr, grid, arguments.data(), 8) == FEATINV_UNKNOWN_KERNEL);
    CHECK(featinv_launch(kernel, 0, nullptr, grid, arguments.data(), 7) == FEATINV_INVALID_ARGUMENT);
    CHECK(message_says("given: 7; expected: 8"));
    CHECK(featinv_launch(kernel, 0, nullptr, nullptr, arguments.data(), 8) == FEATINV_INVALID_ARGUMENT);
    CHECK(featinv_launch(kernel, 0, nullptr, grid, nullptr, 8) == FEATINV_INVALID_ARGUMENT);
    const std::uint32_t empty[3] = {192, 0, 1}, tall[3] = {1, 65536, 1};
    CHECK(featinv_launch(kernel, 0, nullptr, empty, arguments.data(), 8) == FEATINV_INVALID_ARGUMENT);
    CHECK(message_says("given: [192, 0, 1]"));
    CHECK(featinv_launch(kernel, 0, nullptr, tall, arguments.data(), 8) == FEATINV_INVALID_ARGUMENT);
    auto misaligned = arguments;
    misaligned[0].pointer = reinterpret_cast<const void *>(0x10001);
    CHECK(featinv_launch(kernel, 0, nullptr, grid, misaligned.data(), 8) == FEATINV_INVALID_ARGUMENT);
    CHECK(message_says("p_image of to_uint8_kernel does not fit"));
}

// Where there is a driver nothing is launched: the addresses are no memory of a device.
static void test_driver() {
    const featinv_status status = featinv_start_driver();
    std::printf("%s\n", status == FEATINV_OK ? "driver: started" : featinv_message());
    if (status != FEATINV_NO_DRIVER)
        return;
    CHECK(message_says("no driver") && message_says("install it"));
    const auto arguments = image_arguments();
    const std::uint32_t grid[3] = {192, 1, 1};
    CHECK(featinv_launch(0, 0, nullptr, grid, nullptr, 0) == FEATINV_INVALID_ARGUMENT);
    std::size_t kernel = 0;
    CHECK(featinv_find(kernel_name, arguments.data(), arguments.size(), &kernel) == FEATINV_OK);
    CHECK(featinv_prepare(kernel, 0, nullptr) == FEATINV_NO_DRIVER);
    CHECK(featinv_launch(kernel, 0, nullptr, grid, arguments.data(), arguments.size()) == FEATINV_NO_DRIVER);
    CHECK(message_says("no driver"));
}

int main() {
    test_table();
    test_find();
    test_find_refuses();
    test_launch_refuses();
    test_driver();
    std::printf("%zu kernels, %d failures\n", featinv_kernel_count(), failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
