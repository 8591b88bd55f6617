"""The yardstick of DPO: a pair as diffusers' own LoRA script learns it (examples/research_projects/diffusion_dpo).

Real and fake are one batch. The network with peft's LoRA layers sees it with a graph, and again without graph and LoRA. Nothing
is measured ahead. The script also encodes both pictures and the caption in every step; that is not done here.
"""

import contextlib
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.functional import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from spinlite.families.family import Family
from spinlite.maths.losses import error
from spinlite.memory.device import Device
from spinlite.training.batches import Batch

BETA = 5000.0  # the script's default; any other takes as long


class DiffusersWay:
    """A network of its own with peft's LoRA on the same modules, and the script's step on it."""

    def __init__(
        self, family: Family, net: nn.Module, modules: Sequence[str], rank: int, where: Device, optimizer: str
    ) -> None:
        """`net` is the base's network without LoRA; it is changed."""
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(modules), init_lora_weights="gaussian")
        inject_adapter_in_model(config, net.requires_grad_(False), "default")
        self.net, self._family, self._where = net, copy.copy(family), where
        self._family.net = net
        self._layers = [m for m in net.modules() if isinstance(m, BaseTunerLayer)]
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        for parameter in self._parameters:
            parameter.data = parameter.data.float()  # as the script does it: its passes are under autocast then
        if optimizer == "adamw8bit":  # as bitsandbytes has it; ours takes all weights at once
            from bitsandbytes.optim import AdamW8bit

            self.optimizer: torch.optim.Optimizer = AdamW8bit(self._parameters, lr=1e-6, weight_decay=0.0)
        else:
            self.optimizer = where.optimizer(optimizer, self._parameters, 1e-6)

    def update(self, batch: Batch) -> Tensor:
        """One update; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Diffusion-DPO's loss, with its graph."""
        assert batch.fake is not None
        half = self._where.dtype if self._where.dtype != torch.float32 else None
        path, x0 = self._family.path, torch.cat([batch.real, batch.fake])
        eps, t = torch.cat([batch.eps] * 2), torch.cat([batch.t] * 2)
        cond = {name: torch.cat([value] * 2) for name, value in batch.cond.items()}
        x_t, target = path.noise(x0, eps, t), path.target(x0, eps, t)
        with torch.autocast(self._where.device.type, half) if half else contextlib.nullcontext():
            policy = error(self._family.denoise(x_t, t, cond), target)
            self._enable(False)
            with torch.no_grad():
                base = error(self._family.denoise(x_t, t, cond), target)
            self._enable(True)
        real, fake = (policy - base).chunk(2)
        return -F.logsigmoid(-0.5 * BETA * (real - fake)).mean()

    def _enable(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
