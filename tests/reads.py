"""Whether a computation reads what is on the device: there the host waits until the device has done all before it."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# of item() and bool(), and those whose shape depends on values
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class NothingRead(TorchDispatchMode):
    """Within the block no operation may need a tensor's values on the host. A CPU shows it as well as a card."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in READS, f"the host reads: {name}"
        return func(*args, **(kwargs or {}))
