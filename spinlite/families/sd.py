"""Stable Diffusion 1.x and 2.x, over diffusers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spinlite.families.diffusion import Diffusion
from spinlite.families.family import Cond


class StableDiffusion(Diffusion):
    """A diffusers folder, a hub id, or a single file of SD 1.x or 2.x; "demo" is the one that ships with spinlite.

    Conditioning is the text encoder's state at the layer that model.clip_skip names, after its final norm; else the last one.
    SD 2.x's encoder is stored without its last layer.
    """

    kinds = ("sd1", "sd2")

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], chunks: int = 1) -> Cond:
        return {"prompt": self._read(captions, chunks, "", normed=True)[0].cpu()}

    def denoise(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self._device.dtype
        return self.net(x_t.to(dtype), t, encoder_hidden_states=cond["prompt"].to(dtype)).sample

    def export_metadata(self) -> dict[str, str]:
        v = self.path.prediction == "v"
        if self._kind == "sd2":
            architecture = "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"
        else:
            architecture = "stable-diffusion-v1"
        version = ("sd_v2" if self._kind == "sd2" else "sd_v1") + "_v" * v
        return self._describe_base(version, architecture, "diffusers")
