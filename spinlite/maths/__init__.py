"""Formulas: tensors in, tensors out, no device, no files and no chance of its own.

The door is `paths.Path`: how a clean sample is noised and what the network predicts.
"""
