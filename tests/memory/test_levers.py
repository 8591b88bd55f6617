"""Memory levers: on equals off, within the precision's tolerance, on small networks of the real classes."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from spinlite.config.settings import Memory, Model
from spinlite.errors import SpinliteError
from spinlite.families.family import Family
from spinlite.families.load import load_family
from spinlite.lora.adapters import Slots
from spinlite.memory import device
from spinlite.memory.device import Levers, apply_pins
from spinlite.memory.quantized import Quantized
from spinlite.methods.dpo import DPO
from spinlite.methods.seppo import SePPO
from spinlite.methods.sft import SFT
from spinlite.methods.spin import SPIN
from spinlite.training.batches import Batch
from spinlite.training.step import step

PLAIN = SPIN(beta=30.0)
METHODS = [SFT(), SPIN(beta=30.0), SePPO(beta=30.0), SePPO(beta=30.0, gate="indicator"), DPO(beta=30.0)]


def made(base: Path, dora: bool = False, **levers: Any) -> tuple[Family, Slots]:
    """A family under some levers, and a LoRA as large as a trained one in both slots."""
    where = device.Device(torch.device("cpu"), "a test", Levers(**levers))
    found = load_family(Model(base=str(base)), where)
    slots = Slots(found.net, found.lora_targets["all"], rank=4, alpha=4.0, seed=1, dora=dora)
    torch.manual_seed(5)
    for who in ("policy", "opponent"):
        slots.load(who, {k: torch.randn_like(v) * 0.02 if "lora_B" in k else v for k, v in slots.state(who).items()})
    return found, slots


def batch(found: Family, n: int = 2) -> Batch:
    torch.manual_seed(2)
    real, fake, eps = (torch.randn(n, *found.latent_shape) for _ in range(3))
    return Batch(real, fake, eps, torch.tensor([50, 900])[:n], found.encode_captions(["a cat", "two dogs"][:n]))


def gradient(found: Family, slots: Slots, method: Any = PLAIN, one_graph: bool = False) -> list[Tensor]:
    """[loss, the policy's gradients]."""
    loss, _ = step(found, slots, method, batch(found), one_graph)
    grads = [p.grad for p in slots.parameters() if p.grad is not None]
    assert len(grads) == len(slots.parameters())
    for p in slots.parameters():
        p.grad = None
    return [loss, *grads]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of two gradients, as a share of the second."""
    a, b = (torch.cat([g.flatten().double() for g in gs[1:]]) for gs in (ours, theirs))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("one_graph", [False, True])
def test_a_checkpointed_step_has_the_gradient_of_the_plain_one(kind: str, one_graph: bool, tiny_bases: Path):
    found, slots = made(tiny_bases / kind)
    for method in METHODS:
        plain = gradient(found, slots, method, one_graph)
        found.set_checkpointing(True)
        assert_close(gradient(found, slots, method, one_graph), plain)
        found.set_checkpointing(False)
        assert sum(g.norm() for g in plain[1:]) > 0


def test_checkpointing_keeps_fewer_activations(tiny_bases: Path):
    saved: dict[bool, int] = {}
    for on in (False, True):
        found, _ = made(tiny_bases / "sdxl", checkpointing=on)
        numbers = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal numbers
            numbers += tensor.numel() * tensor.requires_grad
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            b = batch(found)
            found.denoise(b.real, b.t, b.cond)
        saved[on] = numbers
    assert 0 < saved[True] < 0.3 * saved[False]


def test_the_checkpoints_of_a_policy_can_not_be_computed_again_as_someone_else(tiny_bases: Path):
    """Going back under another adapter is an error, never a gradient of zero."""
    found, slots = made(tiny_bases / "sd15", checkpointing=True)
    b = batch(found)
    output = found.denoise(b.real, b.t, b.cond)
    with slots.use("base"), pytest.raises(Exception, match="recomputation"):
        output.sum().backward()


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_has_nearly_the_gradient_of_fp32(kind: str, precision: str, most: float, tiny_bases: Path):
    whole, half = made(tiny_bases / kind), made(tiny_bases / kind, precision=precision)
    assert next(half[0].net.parameters()).dtype == half[0].denoise(*inputs(half[0])).dtype == device.DTYPES[precision]
    assert all(p.dtype == torch.float32 for p in half[1].parameters())
    for one_graph in (False, True):
        ours = gradient(*half, one_graph=one_graph)
        assert ours[0].dtype == torch.float32 and all(g.dtype == torch.float32 for g in ours)
        assert distance(ours, gradient(*whole, one_graph=one_graph)) < most


@pytest.mark.parametrize("targets", ["linear", "all"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_in_half_precision_a_policy_that_is_its_opponent_ties_to_the_bit(
    kind: str, precision: str, targets: str, tiny_bases: Path
):  # fmt: skip
    """A zero opponent runs without LoRA: its layers must add the same numbers in the same order."""
    found = load_family(Model(base=str(tiny_bases / kind)), device.Device(torch.device("cpu"), "a test", Levers(precision)))
    slots = Slots(found.net, found.lora_targets[targets], rank=4, alpha=4.0, seed=1)
    loss, errors = step(found, slots, SPIN(beta=2500.0), batch(found), False)
    assert torch.equal(errors["policy_real"], errors["opponent_real"])
    assert torch.equal(errors["policy_fake"], errors["opponent_fake"]) and abs(loss.item() - math.log(2)) < 1e-6


def inputs(found: Family) -> tuple[Tensor, Tensor, Any]:
    b = batch(found)
    return b.real, b.t, b.cond


@pytest.mark.parametrize("beta", [1e-9, 1e9])
def test_in_fp16_no_gradient_is_too_small_or_too_large(beta: float, tiny_bases: Path):
    """Slopes of 1e-9 would be nothing in fp16, slopes of 1e9 infinite."""
    method = Scaled(beta)
    whole, half = made(tiny_bases / "sd15"), made(tiny_bases / "sd15", precision="fp16")
    assert distance(gradient(*half, method), gradient(*whole, method)) < 0.02


@dataclass(frozen=True)
class Scaled:
    """A loss as steep as one likes."""

    slope: float

    def loss(self, policy_real: Tensor, policy_fake: Tensor) -> Tensor:
        return self.slope * (policy_real - 0.5 * policy_fake)


def test_a_gradient_that_overflows_deep_in_the_network_is_taken_again_at_a_smaller_scale(
    tiny_bases: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, half = made(tiny_bases / "sd15"), made(tiny_bases / "sd15", precision="fp16")
    scales: list[float] = []
    grad = torch.autograd.grad

    def overflowing(output: Tensor, given: list[Tensor], slope: Tensor) -> list[Tensor]:
        scales.append(slope.max().item())
        return [g * (1.0 if len(scales) > 1 else float("inf")) for g in grad(output, given, slope)]

    monkeypatch.setattr(torch.autograd, "grad", overflowing)
    assert distance(gradient(*half, SFT()), gradient(*whole, SFT())) < 0.02
    assert len(scales) == 2 and scales[1] == scales[0] / 2**8


def test_in_half_precision_a_lora_keeps_no_fp32_copy_of_its_input(tiny_bases: Path):
    found, _ = made(tiny_bases / "sdxl", precision="bf16")
    kinds: dict[torch.dtype, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + tensor.numel() * tensor.requires_grad
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        found.denoise(*inputs(found))
    assert kinds[torch.float32] < 0.1 * kinds[torch.bfloat16]


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("nf4", 0.2)])
def test_a_quantised_base_predicts_nearly_what_it_did(kind: str, most: float, tiny_bases: Path):
    plain, few = made(tiny_bases / "sdxl"), made(tiny_bases / "sdxl", quantize=kind)
    layers = [m for m in few[0].net.modules() if isinstance(m, Quantized)]
    assert len(layers) > 50 and not any(isinstance(m, Quantized) for m in few[0].net.get_submodule("time_embedding").modules())
    for who in ("base", "policy", "opponent"):
        outputs = []
        for found, slots in (plain, few):
            with torch.no_grad(), slots.use(who):  # pyright: ignore[reportArgumentType]
                outputs.append(found.denoise(*inputs(found)))
        assert 0 < (outputs[1] - outputs[0]).norm() < most * outputs[0].norm()
    assert few[0].base_hash != plain[0].base_hash  # its fakes are other fakes


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_layer_is_the_layer_of_its_decoded_weight(kind: str):
    torch.manual_seed(0)
    linear, x = nn.Linear(128, 64), torch.randn(3, 128, requires_grad=True)
    layer = Quantized(linear, kind, torch.device("cpu"))
    plain = nn.functional.linear(x, layer.weight, linear.bias)
    assert_close(layer(x), plain)
    slope = torch.randn_like(plain)
    assert_close(torch.autograd.grad(layer(x), x, slope), torch.autograd.grad(plain, x, slope))
    error = (layer.weight - linear.weight).norm() / linear.weight.norm()
    assert 0 < error < (0.006 if kind == "int8" else 0.1)
    assert layer.codes.numel() * layer.codes.itemsize == (128 * 64 if kind == "int8" else 128 * 32)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(held.append, lambda saved: saved):
        layer(x)
    assert not held


def test_nf4_is_that_of_bitsandbytes():
    torch.manual_seed(0)
    linear, x = nn.Linear(640, 320), torch.randn(3, 640)
    theirs = bitsandbytes.nn.Linear4bit(640, 320, quant_type="nf4", compress_statistics=True, compute_dtype=torch.float32)
    theirs.load_state_dict(linear.state_dict())
    assert torch.equal(theirs.to("cpu")(x), Quantized(linear, "nf4", torch.device("cpu"))(x))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_learns_in_every_layout_alike(kind: str, tiny_bases: Path):
    found, slots = made(tiny_bases / "sdxl", quantize=kind)
    plain = gradient(found, slots)
    assert sum(g.norm() for g in plain[1:]) > 0
    assert_close(gradient(found, slots, one_graph=True), plain)
    found.set_checkpointing(True)
    assert_close(gradient(found, slots), plain)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_channels_last_changes_nothing(kind: str, tiny_bases: Path):
    plain, last = made(tiny_bases / kind), made(tiny_bases / kind, channels_last=True)
    weight: Any = last[0].net.get_submodule("conv_in").weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert_close(gradient(*last), gradient(*plain), atol=1e-5, rtol=1e-3)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_blocks_change_nothing(tiny_bases: Path):
    plain, compiled = made(tiny_bases / "sdxl"), made(tiny_bases / "sdxl", compile=True)
    assert_close(gradient(*compiled, SFT()), gradient(*plain, SFT()), atol=1e-5, rtol=1e-3)
    outputs = []
    for found, slots in (plain, compiled):
        with torch.no_grad(), slots.use("opponent"):
            outputs.append(found.denoise(*inputs(found)))
    assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-3)


def test_what_torch_can_not_compile_is_said(monkeypatch: pytest.MonkeyPatch, tiny_bases: Path):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("\ncl is not found\nat all")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(SpinliteError, match=r"torch\.compile fails: cl is not found\nfix: remove memory\.compile"):
        made(tiny_bases / "sd15", compile=True)


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_slot_predicts_what_the_live_one_does_and_leaves_no_trace(dora: bool, tiny_bases: Path):
    found, slots = made(tiny_bases / "sd15", dora=dora)
    before = {name: value.clone() for name, value in found.net.state_dict().items()}
    with torch.no_grad():
        policy = found.denoise(*inputs(found))
    for who in ("policy", "opponent", "base"):
        with torch.no_grad():
            with slots.use(who):  # pyright: ignore[reportArgumentType]
                live = found.denoise(*inputs(found))
            with slots.merged(who):  # pyright: ignore[reportArgumentType]
                merged = found.denoise(*inputs(found))
                with slots.use(who):  # pyright: ignore[reportArgumentType]
                    assert torch.equal(found.denoise(*inputs(found)), merged), "its LoRA acts once"
            assert_close(merged, live, atol=1e-5, rtol=1e-4)
            assert torch.equal(found.denoise(*inputs(found)), policy), "afterwards the policy is active as before"
    with pytest.raises(KeyError), slots.merged("policy"):
        raise KeyError
    after = found.net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert gradient(found, slots)[0].isfinite()


def test_a_lora_is_merged_into_fp32_alone(tiny_bases: Path):
    for precision, quantize in (("bf16", "none"), ("fp32", "int8")):
        slots = made(tiny_bases / "sd15", precision=precision, quantize=quantize)[1]
        with pytest.raises(ValueError, match="fp32"), slots.merged("policy"):
            pass
    assert apply_pins(Levers("fp32"), Memory()).merge and not apply_pins(Levers("fp32"), Memory(merge=False)).merge
    assert not apply_pins(Levers("bf16"), Memory()).merge and not apply_pins(Levers("fp32"), Memory(quantize="nf4")).merge
    with pytest.raises(SpinliteError, match=r"memory\.merge = true, but bf16 would round"):
        apply_pins(Levers("bf16"), Memory(merge=True))
