"""Is there room on the disk for what a round learns? A store asks for itself (`runs/store.py:Store.expect`)."""

from spinlite.memory import processes
from spinlite.runs.disk import require_room
from spinlite.runs.listing import size_of
from spinlite.training.session import Session

MOMENTS = 2  # that an optimizer keeps of each weight, at the most


def require_room_to_learn(session: Session, k: int) -> None:
    """Raises SpinliteError if the saves and snapshots of round k do not fit beside what is there of them."""
    learn, run = session.settings.learn, session.run
    lora = sum(parameter.numel() * 4 for parameter in session.slots.parameters())
    save = lora * (1 + MOMENTS + (learn.ema > 0))
    within = (learn.length - 1) // learn.snapshot_every if learn.snapshot_every else 0
    kept = [run.folder / "good", *run.folder.glob("state*.safetensors"), *run.folder.glob(f"snapshots/{k}-*.safetensors")]
    needed = 3 * save + 3 * lora + (within + 1) * lora - sum(map(size_of, kept))  # saves: two, and one that is being written
    processes.from_lead(lambda: require_room(run.folder, needed, f"what round {k} learns"))
