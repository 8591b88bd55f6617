"""Formulas: tensors in, tensors out. Nothing here moves tensors to a device, opens files or keeps random state.

Start reading at `paths.Path`: how a clean sample is noised, and what the network predicts.
"""
