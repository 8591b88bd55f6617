"""Presets and settings: TOML in, frozen and validated settings out.

Start reading at `load.load_settings`.
"""
