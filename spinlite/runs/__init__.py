"""What a run keeps on disk: its folder, journal, state and snapshots, and stores of tensors.

Start reading at `run.Run`.
"""
