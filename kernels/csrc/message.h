/* Messages for people, kept for each thread. */
#ifndef FEATINV_MESSAGE_H
#define FEATINV_MESSAGE_H

#include "featinv_kernels.h"

#if defined(__GNUC__)
#define FEATINV_LIKE_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define FEATINV_LIKE_PRINTF(text, first)
#endif

/* Keep a message for featinv_message and return `status`. */
featinv_status featinv_fail(featinv_status status, const char *format, ...) FEATINV_LIKE_PRINTF(2, 3);

/* Forget the message and return FEATINV_OK. */
featinv_status featinv_succeed(void);

#endif
