"""One file for each kind of base model: how it encodes, denoises, decodes and names its weights.

Start reading at `load.load_family`; `family.Family` lists what each kind must do.
"""
