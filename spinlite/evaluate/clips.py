"""CLIP and the scorers that are CLIP with other weights: PickScore, HPS v2.0 and v2.1, and the CLIP scores.

Weights come in transformers' layout or in open_clip's, whatever the file is called.

Shapes: n pictures with their prompts, pixels (n, 3, 224, 224), embeddings (n, d) of unit length, scores (n,).
"""

import html
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from spinlite.errors import SpinliteError
from spinlite.evaluate.scorer import Column, Looks, Network, Seen, plain
from spinlite.evaluate.weights import Place, Weights, read
from spinlite.families.clip import build_tokenizer

SIDE = 224  # px
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# text (layers, width, heads), picture (layers, width, heads), projection, activation of the MLPs
LARGE = ((12, 768, 12), (24, 1024, 16), 768, "quick_gelu")
HUGE = ((24, 1024, 16), (32, 1280, 16), 1024, "gelu")  # with quick_gelu, transformers' default, scores would be wrong
HUB = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
H_FILES = ("model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
HPS = "xswu/HPSv2"

Pixels = Callable[[Sequence[Image.Image]], Tensor]
Shape = tuple[tuple[int, int, int], tuple[int, int, int], int, str]
OPEN_CLIP = {  # open_clip's names -> those of transformers; each is a part of a key
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # so it is spelt there
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}
IN_A_BLOCK = {
    ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}  # fmt: skip


def clip_config(shape: Shape, side: int = SIDE) -> Any:
    """The configuration of a CLIP model with patches of 14 px. A text's state is that of its end token (the highest number)."""
    from transformers import CLIPConfig

    text, picture, projection, activation = shape
    ours = {"hidden_act": activation, "projection_dim": projection}

    def sizes(layers: int, width: int, heads: int) -> dict[str, int]:
        return {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}

    return CLIPConfig(
        text_config=sizes(*text) | ours | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 2},
        vision_config=sizes(*picture) | ours | {"patch_size": 14, "image_size": side}, projection_dim=projection,
    )  # fmt: skip


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under transformers' names."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key
        for old, new in OPEN_CLIP.items():
            if key == old or (old.endswith(".") and key.startswith(old)):
                name = new + key.removeprefix(old)
                break
        for old, new in IN_A_BLOCK.items():
            name = name.replace(old, new)
        if key in ("visual.proj", "text_projection"):
            found[name] = tensor.T.contiguous()
        elif ".attn.in_proj_" in name:
            kind = name.rpartition("_")[2]  # weight or bias
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace(f".attn.in_proj_{kind}", f".self_attn.{part}_proj.{kind}")] = third
        else:
            found[name] = tensor
    return found


def build_clip(config: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """A CLIP model with these weights, in either layout. Raises SpinliteError, which names `where`, if they don't fit."""
    from accelerate import init_empty_weights
    from transformers import CLIPModel

    plain = {key.removeprefix("model."): tensor for key, tensor in tensors.items()}
    if any(key.startswith("visual.") for key in plain):
        plain = from_open_clip(plain)
    with init_empty_weights():
        model = CLIPModel(config)
    wanted = model.state_dict()
    return fill(model, {key: tensor for key, tensor in plain.items() if key in wanted}, where)


def fill(model: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """Give an empty model its weights. Raises SpinliteError, which calls the file `where`, if they don't fit."""
    wanted = model.state_dict()
    bad = [key for key in wanted if key not in tensors or tensors[key].shape != wanted[key].shape]
    if bad:
        problem = f"{where} does not hold this scorer's weights: {len(bad)} of {len(wanted)} tensors, such as {bad[0]}"
        raise SpinliteError(problem, fix="name the file that belongs to this scorer, or leave out --weights")
    model.load_state_dict({key: tensors[key] for key in wanted}, assign=True)
    return model.eval().requires_grad_(False)


def square(pictures: Sequence[Image.Image], side: int = SIDE) -> Tensor:
    """As CLIP sees pictures: short side to 224 px (bicubic), the centre cut out, normalised."""
    return normalised(torch.stack([_levels(_centre(picture, side)) for picture in pictures]))


def padded(pictures: Sequence[Image.Image], side: int = SIDE) -> Tensor:
    """As HPS sees pictures: long side to 224 px (bicubic, with antialias), black around it to a square, then normalised.

    The reference resizes a tensor, and from torchvision 0.17 on with antialias; before, its figures were others.
    """
    return normalised(torch.stack([_padded(_levels(picture), side) for picture in pictures]))


def normalised(levels: Tensor) -> Tensor:
    """Levels from 0 to 1, (n, 3, h, w), by CLIP's mean and standard deviation."""
    return (levels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def embedding(output: Any) -> Tensor:
    """The projected embedding of unit length, fp32. transformers 5 wraps it; version 4 returned the tensor itself."""
    plain = output if torch.is_tensor(output) else output.pooler_output
    return F.normalize(plain.float(), dim=-1)


def tokens(prompts: Sequence[str], clean: bool = False) -> dict[str, Tensor]:
    """Prompts as CLIP's tokens, cut at 77. `clean`: as open_clip's tokenizer, which also turns &amp; into &."""
    texts = [html.unescape(html.unescape(text)).strip() for text in prompts] if clean else list(prompts)
    return dict(_tokenizer()(texts, padding=True, truncation=True, max_length=77, return_tensors="pt"))


def looks(model: Any, weights: Weights, see: Pixels, clean: bool, scale: float | None) -> Looks:
    """What a CLIP model sees: "score", the cosine of picture and prompt x `scale` (None: the model's own), and "embedding"."""
    device, dtype = weights.device.device, weights.precision
    model.to(device, dtype)
    factor = model.logit_scale.float().exp().item() if scale is None else scale

    @torch.no_grad()
    def look(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Seen:
        shown = embedding(model.get_image_features(pixel_values=see(pictures).to(device, dtype)))
        given = {key: value.to(device) for key, value in tokens(prompts, clean).items()}
        said = embedding(model.get_text_features(**given))
        return {"score": (factor * (shown * said).sum(-1)).cpu(), "embedding": shown.cpu()}

    return look


def clip_network(
    name: str, shape: Shape, places: Sequence[Place], see: Pixels = square, clean: bool = False, scale: float | None = 100
) -> Network:
    """A scorer that is CLIP with the weights of the first of `places` that is there."""

    def load(weights: Weights) -> Looks:
        path = weights.find(name, places)
        return looks(build_clip(clip_config(shape), read(path), str(path)), weights, see, clean, scale)

    return Network(name, load, {name: places})


@cache
def _tokenizer() -> Any:
    return build_tokenizer()


def _centre(picture: Image.Image, side: int) -> Image.Image:
    short = min(picture.size)
    width, height = (int(side * length / short) for length in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def _levels(picture: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


def _padded(levels: Tensor, side: int) -> Tensor:
    height, width = levels.shape[1:]
    if max(height, width) == side:
        size = (height, width)
    else:
        size = tuple(round(length * side / max(height, width)) for length in (height, width))
        levels = F.interpolate(levels[None], size, mode="bicubic", align_corners=False, antialias=True)[0]
    down, right = side - size[0], side - size[1]
    return F.pad(levels, (right // 2, right - right // 2, down // 2, down - down // 2))


NETWORKS = (
    clip_network("pickscore_v1", HUGE, [Place("yuvalkirstain/PickScore_v1", "model.safetensors", 3.9)], scale=None),
    clip_network("hps_v2.1", HUGE, [Place(HPS, "HPS_v2.1_compressed.pt", 2.0)], padded, clean=True),
    clip_network("hps_v2.0", HUGE, [Place(HPS, "HPS_v2_compressed.pt", 2.0)], padded, clean=True),
    clip_network("clip_l14", LARGE, [Place("openai/clip-vit-large-patch14", "model.safetensors", 1.7)]),
    clip_network("clip_h14", HUGE, [Place(HUB, file, 3.9) for file in H_FILES]),
)
COLUMNS = (
    Column("pickscore_v1", "pickscore_v1", plain("score"), "PickScore, x the model's scale of about 100"),
    Column("hps_v2.1", "hps_v2.1", plain("score"), "Human Preference Score v2.1, x 100, resized with antialias"),
    Column("hps_v2.0", "hps_v2.0", plain("score"), "Human Preference Score v2.0, x 100, resized with antialias"),
    Column("clip_l14", "clip_l14", plain("score"), "CLIP score of OpenAI's ViT-L/14, 100 x cosine"),
    Column("clip_h14", "clip_h14", plain("score"), "CLIP score of LAION's ViT-H/14, 100 x cosine"),
)
