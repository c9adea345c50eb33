"""Content-addressed tensors, for parameters and architectures."""
