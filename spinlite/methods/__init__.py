"""The methods, one file each: a frozen dataclass of settings and a `loss` over denoising errors.

The door is `registry.METHODS`, which finds a method by its name in a preset.
"""
