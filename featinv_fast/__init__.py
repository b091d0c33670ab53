"""featinv-fast: an optimized inference engine for FeatInv (arXiv 2505.21032)."""
