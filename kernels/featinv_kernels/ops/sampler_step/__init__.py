"""One step of a diffusion sampler: two linear combinations in one kernel."""
