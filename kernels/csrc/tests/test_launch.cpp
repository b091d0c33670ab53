// What reaches the driver: which machine code, with which parameters. The driver is the double, so nothing runs.

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>

#include "checks.hpp"

extern "C" {
#include "driver_double.h"
}

static double_state *state = nullptr;
static std::size_t kernel = 0;
static const std::uint32_t grid[3] = {192, 2, 3};

static bool has_target(const char *target) {
    return std::strstr(featinv_kernel_description(kernel), (std::string("\"target\": \"") + target + "\"").c_str());
}

static featinv_status launch(std::size_t which, const std::array<featinv_value, 8> &arguments, int device = 0) {
    return featinv_launch(which, device, reinterpret_cast<void *>(0x77), grid, arguments.data(), arguments.size());
}

static void test_parameters() {
    auto arguments = image_arguments();
    arguments[2] = integer(-16);
    state->parameters = 6 + 2; // stride_pixel is 1 and BLOCK a compile-time value; two are hidden
    CHECK(featinv_find(kernel_name, arguments.data(), arguments.size(), &kernel) == FEATINV_OK);
    CHECK(launch(kernel, arguments) == FEATINV_OK);
    CHECK(state->launches == 1);
    CHECK(std::string(state->kernel) == kernel_name);
    CHECK(std::memcmp(state->grid, grid, sizeof grid) == 0);
    CHECK(state->threads == 256);
    CHECK(state->stream == reinterpret_cast<void *>(0x77));
    CHECK(state->values[0] == 0x10000 && state->values[1] == 0x20000);
    CHECK(static_cast<std::int32_t>(state->values[2]) == -16);
    CHECK(static_cast<std::int32_t>(state->values[3]) == 192);
    CHECK(static_cast<std::int32_t>(state->values[4]) == 3 * 65536);
    CHECK(static_cast<std::int32_t>(state->values[5]) == 65536);
    CHECK(state->values[6] == 0 && state->values[7] == 0);
}

static void test_loaded_once() {
    const int loads = state->loads;
    CHECK(launch(kernel, image_arguments()) == FEATINV_OK);
    CHECK(featinv_prepare(kernel, 0, nullptr) == FEATINV_OK);
    CHECK(state->loads == loads);
}

static void test_target() {
    const auto runs_from = [](int capability) {
        int target = -1;
        state->capability = capability;
        CHECK(featinv_prepare(kernel, 0, &target) == FEATINV_OK);
        CHECK(launch(kernel, image_arguments()) == FEATINV_OK);
        CHECK(state->target == target);
        return target;
    };
    // Code for this very GPU, else for an older one of the same generation 8, else PTX.
    const int for_80 = has_target("sm_80") ? 80 : 0, for_86 = has_target("sm_86") ? 86 : for_80;
    CHECK(runs_from(80) == for_80);
    CHECK(runs_from(86) == for_86);
    CHECK(runs_from(87) == for_86);
    CHECK(runs_from(89) == (has_target("sm_89") ? 89 : for_86));
    CHECK(runs_from(90) == (has_target("sm_90") ? 90 : 0));
    CHECK(runs_from(100) == (has_target("sm_100") ? 100 : 0));
    CHECK(runs_from(103) == 0);
    CHECK(runs_from(120) == 0);
    state->capability = 75;
    CHECK(featinv_prepare(kernel, 0, nullptr) == FEATINV_UNSUPPORTED_DEVICE);
    CHECK(message_says("given: compute capability 7.5"));
}

static void test_machine_code_is_refused() {
    // Another form, since the driver is asked once for each.
    auto arguments = image_arguments();
    arguments[0].pointer = reinterpret_cast<const void *>(0x10004);
    std::size_t other = 0;
    int target = -1;
    state->capability = has_target("sm_80") ? 80 : 90;
    state->refuses_machine_code = 1;
    CHECK(featinv_find(kernel_name, arguments.data(), arguments.size(), &other) == FEATINV_OK);
    CHECK(other != kernel);
    CHECK(featinv_prepare(other, 0, &target) == FEATINV_OK);
    CHECK(target == 0);
    const int loads = state->loads;
    CHECK(launch(other, arguments) == FEATINV_OK);
    CHECK(state->target == 0);
    CHECK(state->loads == loads);
    state->refuses_machine_code = 0;
}

static void test_contexts() {
    state->has_context = 0;
    const int made = state->contexts_made;
    CHECK(launch(kernel, image_arguments(), 1) == FEATINV_OK);
    CHECK(state->contexts_made == made + 1 && state->context_device == 1);
    CHECK(launch(kernel, image_arguments(), 1) == FEATINV_OK);
    CHECK(state->contexts_made == made + 1);
    CHECK(launch(kernel, image_arguments(), 0) == FEATINV_INVALID_ARGUMENT);
    CHECK(message_says("another device"));
    state->context_device = 0;
    CHECK(launch(kernel, image_arguments(), 2) == FEATINV_DRIVER_ERROR);
    CHECK(message_says("finding the device failed"));
}

static void test_the_drivers_error_is_told() {
    state->launch_error = 700;
    CHECK(launch(kernel, image_arguments()) == FEATINV_DRIVER_ERROR);
    CHECK(message_says("to_uint8_kernel failed") && message_says("(700)") && message_says("the double says so"));
    state->launch_error = 0;
    CHECK(launch(kernel, image_arguments()) == FEATINV_OK);
}

int main() {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    void *symbol = driver ? dlsym(driver, "double_state") : nullptr;
    if (!symbol) {
        std::fprintf(stderr, "LD_LIBRARY_PATH does not lead to the driver's double\n");
        return EXIT_FAILURE;
    }
    state = reinterpret_cast<double_state *(*)()>(symbol)();
    test_parameters();
    test_loaded_once();
    test_target();
    test_machine_code_is_refused();
    test_contexts();
    test_the_drivers_error_is_told();
    std::printf("%d launches, %d failures\n", state->launches, failures);
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
