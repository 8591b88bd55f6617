"""Pure functions of tensors: no device, no random state of their own, no I/O."""
