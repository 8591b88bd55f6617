"""Presets and settings: TOML in, frozen and validated settings out.

The door is `load.load_settings`.
"""
