"""The page in the browser: runs, a run as it goes on, a new run, any LoRA file. It reads run folders and types commands.

Start reading at `server.serve`.
"""
