"""One folder per op; `featinv_kernels.spec` says what is in it."""
