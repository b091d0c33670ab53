"""Operations with a plain torch reference and fused kernels."""
