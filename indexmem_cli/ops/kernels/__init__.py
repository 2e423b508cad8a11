"""The Triton kernels behind the faces of `ops`; loaded only when one of them is chosen."""
