"""Two LoRA slots on one frozen base network: the policy, which learns, and the opponent, which does not."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spinlite.errors import SpinliteError
from spinlite.lora.layer import Adapted, Cast, merged_change
from spinlite.memory.quantized import Quantized

Who = Literal["policy", "opponent", "base"]
PARTS = ("lora_A", "lora_B", "lora_magnitude_vector")  # the last with DoRA only


class Slots:
    """Two LoRA adapters, "policy" and "opponent", on one network; "base" is the network without either.

    Outside of `use` the policy is active. Both slots start as the same all-zero LoRA (B = 0, A random from the seed).

    The LoRA weights are fp32, but they compute in the precision of their layer. In fp32 each LoRA would keep an fp32 copy of
    its input for the backward pass: half as much again as a block's other activations.

    The scale is alpha / rank, with `rslora` alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732). With `dora` each
    output's magnitude learns too (Liu et al. 2024, arXiv 2402.09353); DoRA computes in fp32.
    """

    def __init__(
        self, net: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int, rslora: bool = False,
        dora: bool = False,
    ) -> None:  # fmt: skip
        net.requires_grad_(False)
        self.scale = alpha / (math.sqrt(rank) if rslora else rank)
        self._layers = _adapt(net, targets, rank, self.scale, seed, dora)
        self._half = any(layer.base_dtype == torch.float16 for layer in self._layers.values())
        self._zero = False  # whether the opponent's LoRA is known to be zero
        self._merged: Who | None = None  # whose LoRA is in the base's weights
        self._held = 0  # how many blocks of `use` there are
        self._active: Who = "base"
        self._activate("policy")
        self.load("opponent", self.state("policy"))

    @property
    def modules(self) -> list[str]:
        """The names of the network's modules that have a LoRA."""
        return list(self._layers)

    @property
    def target_bytes(self) -> int:
        """Bytes of those base weights that have a LoRA; quantised ones are not counted."""
        bases: list[Any] = [layer.base_layer for layer in self._layers.values()]
        return sum(base.weight.numel() * base.weight.element_size() for base in bases if not isinstance(base, Quantized))

    @contextlib.contextmanager
    def use(self, who: Who) -> Iterator[None]:
        """Within the block the network is `who`; afterwards it is again what it was before.

        With gradient checkpointing the backward pass recomputes activations with whoever is active at that moment, so run it
        while the policy is active.
        """
        before = self._active
        self._held += 1
        try:
            self._activate(who)
            if who == "policy" and self._held == 1:
                self._cast(who)
            yield
        finally:
            self._held -= 1
            if not self._held:
                self._drop_cast("policy")
            self._activate(before)

    @contextlib.contextmanager
    def merged(self, who: Who) -> Iterator[None]:
        """Within the block the LoRA of `who` is added to the base's weights: faster, but without gradients. Afterwards the
        weights are restored, bit for bit.

        In fp32 only; raises ValueError otherwise. Half precision would round the change away: where it is 1/1000 of the
        weight, bf16 loses 79 % of it and fp16 21 % (root mean squares).
        """
        if who == "base" or (who == "opponent" and self._zero):
            with self.use("base"):
                yield
            return
        bases: dict[str, Any] = {name: layer.base_layer for name, layer in self._layers.items()}
        if not all(layer.exact for layer in self._layers.values()):
            raise ValueError("a LoRA can be merged only into fp32 weights")
        state = {name: p.detach() for name, p in self._parameters(who).items()}
        kept = {name: base.weight.detach().clone() for name, base in bases.items()}
        try:
            for name, base in bases.items():
                base.weight.data += delta(state, name, self.scale, kept[name])
            self._merged = who
            with self.use(who):
                yield
        finally:
            self._merged = None
            self._activate(self._active)
            for name, base in bases.items():
                base.weight.data.copy_(kept[name])

    def backward(self, error: Tensor, slope: Tensor, numbers: int, measure_again: Callable[[], Tensor]) -> None:
        """Add the gradient of sum(slope * error) to the policy's. error, slope: (B,).

        If `error` has no graph, `measure_again` makes one. `numbers` is the count of numbers in a sample.

        An error is a mean over a sample, so the gradient at the prediction is about slope / numbers. fp16 can't hold that: its
        smallest number is 6e-8. There the slopes are scaled by a power of two, to gradients of about 1; if some gradient then
        overflows, they are scaled less (like the loss scaling of other trainers).
        """
        graph = error if error.requires_grad else measure_again()
        largest = slope.abs().max().item() if self._half else 0.0
        if not 0 < largest < math.inf:  # what is not a number has no size either
            graph.backward(slope)
            return
        parameters = self.parameters()
        scale = 2.0 ** math.floor(math.log2(numbers / largest))
        gradients = torch.autograd.grad(graph, parameters, slope * scale)
        for _ in range(2):
            if torch.stack([g.isfinite().all() for g in gradients]).all():
                break
            scale /= 2**8
            gradients = torch.autograd.grad(measure_again(), parameters, slope * scale)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g / scale if p.grad is None else p.grad + g / scale

    def parameters(self) -> list[nn.Parameter]:
        """The weights that learn: the policy's, in a fixed order."""
        return list(self._parameters("policy").values())

    def state(self, who: Literal["policy", "opponent"]) -> dict[str, Tensor]:
        """A copy of a slot's weights, in fp32 on the CPU.

        `module.lora_A.weight` (rank, in, ...), `module.lora_B.weight` (out, rank, ...), and with DoRA
        `module.lora_magnitude_vector.weight` (out,) or (1, out, 1, 1).
        """
        return {name: p.detach().cpu().clone() for name, p in self._parameters(who).items()}

    def load(self, who: Literal["policy", "opponent"], state: dict[str, Tensor]) -> None:
        """Load a snapshot into a slot. Raises SpinliteError if it does not fit this network."""
        slot = self._parameters(who)
        wrong = [name for name in slot.keys() | state.keys()
                 if name not in slot or name not in state or slot[name].shape != state[name].shape]  # fmt: skip
        if wrong:
            raise SpinliteError(
                f"the snapshot does not fit this model's LoRA ({len(wrong)} weights differ, e.g. {sorted(wrong)[0]})",
                fix="use the base model, model.rank and model.targets that it was made with",
            )
        with torch.no_grad():
            for name, parameter in slot.items():
                parameter.copy_(state[name])
        if who == "opponent":
            rest = [value for name, value in state.items() if not name.endswith(".lora_A.weight")]
            self._zero = not any(value.is_meta or value.any() for value in rest)
            self._activate(self._active)
        if who == "opponent" or self._held:
            self._cast(who)

    def _parameters(self, who: str) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{part}.weight": getattr(layer, part)[who].weight
            for name, layer in self._layers.items()
            for part in PARTS
            if who in getattr(layer, part)
        }

    def _activate(self, who: Who) -> None:
        """A zero LoRA is left out: the opponent is the base then. So is one that is merged."""
        left_out = who in ("base", self._merged) or (who == "opponent" and self._zero)
        for layer in self._layers.values():
            layer.active = None if left_out else who
        self._active = who

    def _cast(self, who: Literal["policy", "opponent"]) -> None:
        """Cast a slot's weights in one go to the precision that they compute in, if that is another one."""
        self._drop_cast(who)
        layers = [layer for layer in self._layers.values() if layer.casts]
        with torch.enable_grad():
            masters = [weight for layer in layers for weight in layer.masters[who]]
            dtypes = [layer.dtype for layer in layers for _ in range(2)]
            cast = iter(Cast.apply(dtypes, *masters) if masters else ())  # pyright: ignore[reportArgumentType]
        for layer in layers:
            layer.ready[who] = next(cast), next(cast)

    def _drop_cast(self, who: str) -> None:
        for layer in self._layers.values():
            layer.ready.pop(who, None)


def _adapt(net: nn.Module, targets: Sequence[str], rank: int, scale: float, seed: int, dora: bool) -> dict[str, Adapted]:
    """Put an `Adapted` layer in place of each target: a module with one of these names, or whose name ends in one."""
    ends = tuple(f".{target}" for target in targets)
    found: dict[str, Any] = {name: m for name, m in net.named_modules() if name in targets or name.endswith(ends)}
    if not found or not all(isinstance(m, nn.Linear | nn.Conv2d) for m in found.values()):
        raise ValueError(f"no linear layers or convolutions: {', '.join(targets)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = {name: Adapted(base, rank, scale, dora) for name, base in found.items()}
    for name, layer in layers.items():
        net.set_submodule(name, layer)
    return layers


def delta(state: Mapping[str, Tensor], module: str, scale: float, weight: Tensor | None = None) -> Tensor:
    """The change of one module's weight, in fp32 and in the weight's shape: (out, in) or (out, in, k, k).

    For LoRA it is scale * B A. For DoRA it is m V / |V| - W with V = W + scale * B A, where m is the magnitude, |V| the norm of
    each output and W the base's `weight` (ValueError without it).
    """
    down, up = state[f"{module}.lora_A.weight"].float(), state[f"{module}.lora_B.weight"].float()
    change = merged_change(down, up, scale)
    magnitude = state.get(f"{module}.lora_magnitude_vector.weight")
    if magnitude is None:
        return change
    if weight is None:
        raise ValueError(f"{module} has a magnitude: its change depends on the base's weight")
    moved = weight.float() + change
    shape = (-1, *[1] * (moved.ndim - 1))
    return magnitude.float().view(shape) * moved / moved.flatten(1).norm(dim=1).view(shape) - weight.float()


def module_names(state: dict[str, Tensor]) -> list[str]:
    """The modules in a LoRA state, in its order."""
    return [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
