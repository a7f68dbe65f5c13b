"""The attention side in Triton: CUDA tensors, or CPU tensors under TRITON_INTERPRET=1.

Importing a module of this package imports triton; only `load_model_kernels("cuda")` does so.
"""
