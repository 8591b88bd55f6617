"""Presets and settings: TOML in, frozen and validated settings out.

The door is `settings.load_settings`.
"""
