"""LoRA inside the network, where it learns, and LoRA as a file: read, written in several layouts, resized, started from.

Start reading at `adapters.Slots` for the former, `read.read_lora_for` for the latter.
"""
