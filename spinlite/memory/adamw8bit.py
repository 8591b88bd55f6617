"""bitsandbytes' AdamW with a state of 8 bits, without a wait for the card after every single weight."""

from collections.abc import Callable

import bitsandbytes
import torch


class AdamW8bit(bitsandbytes.optim.AdamW8bit):
    """bitsandbytes waits for the device after each weight, which only its paged states need: its kernels keep their order."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Change the weights by their gradients."""
        if not self.initialized:
            self.to_gpu()
            self.initialized = True
        for g, group in enumerate(self.param_groups):
            for i, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                if not self.state[weight]:
                    self.init_state(group, weight, g, i)
                self.update_step(group, weight, g, i)
