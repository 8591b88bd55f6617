"""How a run fits into memory: device, precision, quantised layers, and what happens when memory runs out.

The door is `device.choose_device`.
"""
