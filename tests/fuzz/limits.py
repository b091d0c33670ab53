"""What no input may take."""

HANG_SECONDS = 5.0
# Memory that libraries take for themselves whatever the input is: buffers of decoders, pools of allocators.
CONSTANT_BYTES = 64 * 2**20
DECLARED_FACTOR = 2
# Above what a worker has when it starts: allocations beyond fail in the worker and leave the machine alone.
ADDRESS_SPACE = 3 * 2**30
# Of a message: what is longer hides what it says.
MESSAGE_CHARACTERS = 15_000
# Of the mutants of each target that get past the first header check.
LEAST_PAST_HEADER = 0.3


def allowed_bytes(declared: int | None) -> int:
    """How much memory may be taken for an input whose validated header declares so many bytes."""
    return DECLARED_FACTOR * (declared or 0) + CONSTANT_BYTES
