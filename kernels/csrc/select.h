/* Which compiled kernel serves which arguments. */
#ifndef FEATINV_SELECT_H
#define FEATINV_SELECT_H

#include "table.h"

/* Whether a value is one that a parameter's compiled form takes. */
int featinv_takes(const struct parameter *parameter, const featinv_value *value);

/* "integer 7", "a float16 tensor at an address that is no multiple of 16", ... in `buffer`, which is returned. */
const char *featinv_describe_value(const featinv_value *value, char *buffer, size_t size);

/* The same for what a parameter takes. */
const char *featinv_describe_parameter(const struct parameter *parameter, char *buffer, size_t size);

#endif
