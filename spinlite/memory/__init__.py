"""How a run fits into memory: device, precision, quantised layers, and what happens when memory runs out.

Start reading at `device.choose_device`.
"""
