#include "message.h"

#include <stdarg.h>
#include <stdio.h>

#if defined(_MSC_VER)
static __declspec(thread) char message[1024];
#else
static _Thread_local char message[1024];
#endif

featinv_status featinv_fail(featinv_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

featinv_status featinv_succeed(void) {
    message[0] = '\0';
    return FEATINV_OK;
}

const char *featinv_message(void) { return message; }
