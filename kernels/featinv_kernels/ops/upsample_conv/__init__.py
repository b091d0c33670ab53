"""Nearest-neighbour doubling and the 3x3 convolution after it, as four 2x2 convolutions of the small map."""
