"""The server of the page: one process, this computer only."""

import os
import socket
from pathlib import Path

from nicegui import app, ui

from spinlite.errors import SpinliteError
from spinlite.ui import lora_page, new_page, pictures, run_page, runs_page, vote_page
from spinlite.ui.guard import HOST, Guard

PORT = 8765  # the first that is tried


def serve(runs: Path, port: int, token: str, show: bool) -> None:
    """Serve the page until the process ends. `runs` is the folder with the runs; the browser opens if `show`."""
    runs = runs.absolute()
    for page in (runs_page, run_page, vote_page, new_page, lora_page):
        page.register(runs)
    app.routes.extend(pictures.routes(runs) + lora_page.routes(runs))
    app.config.quasar_config["loadingBar"] = {"skipHijack": True}  # a bar without a name, at each look at a picture
    app.add_middleware(Guard, port=port, token=token)
    ui.run(
        host=HOST, port=port, title="spinlite", dark=None, show=f"/?token={token}" if show else False, reload=False,
        tailwind=False, show_welcome_message=False, language="en-GB", reconnect_timeout=10.0,
        uvicorn_logging_level="critical",  # at others it reports browsers that leave while a page is loading
    )  # fmt: skip


def free_port(wanted: int | None) -> int:
    """The port that was asked for, or the first free one from PORT on. Raises SpinliteError if it is taken."""
    for port in [wanted] if wanted else range(PORT, PORT + 20):
        with socket.socket() as probe:
            if os.name != "nt":  # a port rests after its server was killed; on Windows this would steal it
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return port
            except OSError:
                continue
    where = f"port {wanted} is" if wanted else f"ports {PORT} to {PORT + 19} are"
    raise SpinliteError(f"{where} taken by another program", fix=f"add --port {(wanted or PORT) + 20}")
