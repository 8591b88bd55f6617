"""The page in the browser: runs, a run as it goes on, a new run, any LoRA file. It reads run folders and types commands.

NiceGUI serves it: its scripts and fonts are in its package, so that it works without internet. (Gradio needs Pillow below 13.)

Start reading at `server.serve`.
"""
