/* A stand-in for the CUDA driver that runs nothing: it plays a GPU and writes down what it is asked to do. */
#ifndef FEATINV_DRIVER_DOUBLE_H
#define FEATINV_DRIVER_DOUBLE_H

#include <stddef.h>
#include <stdint.h>

#define DOUBLE_MOST_PARAMETERS 80

struct double_state {
    /* What it plays. */
    int capability;           /* of both devices, 10 * major + minor */
    int refuses_machine_code; /* as an old driver does that was given a new cubin */
    int has_context;          /* whether the thread has a context */
    int context_device;       /* whose */
    int launch_error;         /* what a launch returns */
    size_t parameters;        /* how many parameters of a launch to read */
    /* What it saw. */
    int loads;
    int contexts_made;
    int launches;
    int target; /* of the last launched code: 90 for sm_90, 0 for PTX */
    char kernel[64];
    unsigned grid[3];
    unsigned threads;
    unsigned shared_bytes;
    int allowed_shared_bytes;
    void *stream;
    uint64_t values[DOUBLE_MOST_PARAMETERS];
};

#endif
