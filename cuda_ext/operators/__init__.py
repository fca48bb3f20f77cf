"""The operators, one file each: definition, checks and schema in one function; kernels of the same name in ``csrc``."""
