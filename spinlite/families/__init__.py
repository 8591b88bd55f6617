"""Kinds of base models, one file each: how one encodes, denoises, decodes and names its weights.

The door is `load.load_family`; `family.Family` says what a kind must do.
"""
