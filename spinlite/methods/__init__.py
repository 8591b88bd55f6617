"""The training methods, one file each: a frozen dataclass with the settings of [method] and a `loss` over denoising errors.

Start reading at `registry.METHODS`, which holds them by the names that presets use.
"""
