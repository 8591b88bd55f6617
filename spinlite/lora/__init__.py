"""LoRA: the adapters that learn inside the network, and LoRA as tensors that are read, laid out, resized and started from.

The door is `adapters.Slots` while a run learns, `read.read_lora` for files.
"""
