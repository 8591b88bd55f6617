"""Checks whether this computer can train, and says how to fix what can't.

The door is `diagnosis.diagnose`.
"""
