"""What this computer can train with, and what fixes the rest.

The door is `diagnosis.diagnose`.
"""
