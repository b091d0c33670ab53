"""Bilinear enlargement and the 3x3 convolution after it, with the products on the small map."""
