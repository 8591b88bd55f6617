"""What a run computes with, chosen from the card and from [memory], with the reason."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from spinlite.config.settings import Memory, Model
from spinlite.errors import SpinliteError
from spinlite.families.load import load_family
from spinlite.memory import device
from spinlite.memory.device import Device, Levers

CUDA = Device(torch.device("cuda"), "a test", Levers("fp16"))
RANDN = torch.randn
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here")


def card(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """A computer with a card that has, or lacks, bf16."""
    monkeypatch.setattr("accelerate.PartialState", lambda: SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: "GTX 1660")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)


def xformers(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    """An xformers whose attention is `call`, on a computer where "cuda" is the CPU."""
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=call))
    monkeypatch.setattr(torch, "randn", lambda *shape, device, **more: RANDN(*shape, **more))


def test_the_precision_is_the_cards(monkeypatch: pytest.MonkeyPatch):
    card(monkeypatch, bf16=False)
    assert str(device.choose_device()) == "GTX 1660, fp16 (sm_75 has no bf16)" and device.choose_device().dtype == torch.float16
    assert str(device.choose_device(Memory(precision="fp32"))).startswith("GTX 1660, fp32 (memory.precision)")
    with pytest.raises(SpinliteError, match=r'memory\.precision = "bf16", but GTX 1660, fp16 \(sm_75 has no bf16\)'):
        device.choose_device(Memory(precision="bf16"))
    card(monkeypatch, bf16=True)
    assert device.choose_device().levers.precision == "bf16" and not device.choose_device().levers.merge


def test_what_memory_pins_is_said():
    chosen = device.choose_device(Memory(quantize="nf4", checkpointing=False))
    assert chosen.levers.quantize == "nf4" and str(chosen).endswith("; set in [memory]: quantize, checkpointing")
    assert str(device.choose_device()).endswith("; the LoRA is merged into the base while it plays")


def test_attention_without_xformers_says_why():
    cpu = Device(torch.device("cpu"), "a test")
    assert cpu.attention([40]) == ("sdpa", "xformers needs a CUDA card")
    assert CUDA.attention([40]) == ("sdpa", "xformers is not installed")
    assert Device(cpu.device, "", Levers(attention="sdpa")).attention([40]) == ("sdpa", "memory.attention")
    with pytest.raises(SpinliteError, match=r'memory\.attention = "xformers", but xformers needs a CUDA card'):
        Device(cpu.device, "", Levers(attention="xformers")).attention([40])


def test_xformers_is_taken_where_it_computes_attention(monkeypatch: pytest.MonkeyPatch):
    def right(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)  # pyright: ignore

    xformers(monkeypatch, right)
    assert CUDA.attention([160, 40, 40]) == ("xformers", "it runs here, forward and back, with heads of 40, 160")


def test_xformers_that_fails_on_one_size_or_in_the_way_back_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    def only_small(q, k, v):
        if q.shape[-1] > 128:
            raise NotImplementedError("no operator found for this head size\nmore")
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)  # pyright: ignore

    xformers(monkeypatch, only_small)
    assert CUDA.attention([40])[0] == "xformers"
    assert CUDA.attention([40, 160]) == ("sdpa", "xformers fails here: no operator found for this head size")
    xformers(monkeypatch, lambda q, k, v: only_small(q, k, v).detach().requires_grad_())
    assert CUDA.attention([40])[0] == "sdpa"
    xformers(monkeypatch, lambda q, k, v: 2 * only_small(q, k, v))
    assert CUDA.attention([40]) == ("sdpa", "xformers gives wrong results here, with heads of 40")


@gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("levers", [{}, {"quantize": "nf4"}, {"quantize": "int8"}, {"channels_last": True}], ids=str)
def test_a_card_predicts_what_the_cpu_does(kind: str, levers: dict[str, Any], tiny_bases: Path):
    torch.manual_seed(0)
    x, t, outputs = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), []
    for where in ("cpu", "cuda"):
        chosen = Device(torch.device(where), "a test", Levers(**levers))
        made = load_family(Model(base=str(tiny_bases / kind)), chosen)
        cond = {name: value.to(where) for name, value in made.encode_captions(["a cat", ""]).items()}
        with torch.no_grad():
            outputs.append(made.denoise(x.to(where), t.to(where), cond).float().cpu())
    assert (outputs[1] - outputs[0]).norm() < 0.01 * outputs[0].norm()
