"""ImageReward (Xu et al. 2023, arXiv 2304.05977) on transformers' BLIP classes.

A prompt is cut at 35 word pieces, as in the reference. Pictures are normalised as CLIP's, not as BLIP's.

Shapes: n pictures with their prompts, pixels (n, 3, 224, 224), scores (n,).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from spinlite.errors import SpinliteError
from spinlite.evaluate.clips import fill, square
from spinlite.evaluate.heads import fold, layers_of
from spinlite.evaluate.scorer import Column, Looks, Network, Seen, plain
from spinlite.evaluate.weights import Place, Weights, read

NAME = "imagereward_v1"
PLACES = (Place("zai-org/ImageReward", "ImageReward.pt", 1.8), Place("THUDM/ImageReward", "ImageReward.pt", 1.8))
BERT, PIECES = "bert", (Place("google-bert/bert-base-uncased", "vocab.txt", 0.0002),)
LENGTH = 35  # word pieces
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the scores on the data that it was trained on
PICTURE, TEXT = "blip.visual_encoder.", "blip.text_encoder."
RENAMED = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.", "blocks.": "encoder.layers.", "norm.": "post_layernorm.",
}  # fmt: skip
IN_A_BLOCK = {".attn.qkv.": ".self_attn.qkv.", ".attn.proj.": ".self_attn.projection.", ".norm1.": ".layer_norm1.",
              ".norm2.": ".layer_norm2."}  # fmt: skip


def configs(layers: tuple[int, int] = (24, 12), width: tuple[int, int] = (1024, 768), heads: tuple[int, int] = (16, 12)) -> Any:
    """(picture, text) configurations of BLIP-L; other sizes for tests. Most defaults of transformers' are BLIP-base's."""
    from transformers import BlipTextConfig, BlipVisionConfig

    picture = BlipVisionConfig(
        hidden_size=width[0], intermediate_size=4 * width[0], num_hidden_layers=layers[0], num_attention_heads=heads[0],
        image_size=224, patch_size=16, layer_norm_eps=1e-6,
    )  # fmt: skip
    text = BlipTextConfig(
        vocab_size=30524, hidden_size=width[1], intermediate_size=4 * width[1], num_hidden_layers=layers[1],
        num_attention_heads=heads[1], encoder_hidden_size=width[0],
    )  # fmt: skip
    return picture, text


class Reward(nn.Module):
    """The network: the prompt's first state, which has looked at the picture, through a head that is one linear map."""

    def __init__(self, picture: nn.Module, text: nn.Module, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.picture, self.text, self.weight, self.bias = picture, text, weight, bias

    @torch.no_grad()
    def forward(self, pixels: Tensor, words: Mapping[str, Tensor]) -> Tensor:
        """Pixels and the prompts' word pieces -> scores, fp32."""
        shown = self.picture(pixel_values=pixels).last_hidden_state
        everywhere = torch.ones(shown.shape[:2], dtype=torch.long, device=shown.device)
        states = self.text(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"],
            encoder_hidden_states=shown, encoder_attention_mask=everywhere,
        ).last_hidden_state  # fmt: skip
        raw = states[:, 0].double().cpu() @ self.weight[0] + self.bias
        return ((raw - MEAN) / STD).float()


def build(tensors: Mapping[str, Tensor], where: str, sizes: Any = None) -> Reward:
    """The network with these weights. Raises SpinliteError, which calls the file `where`, if they don't fit."""
    from accelerate import init_empty_weights
    from transformers import BlipTextModel, BlipVisionModel

    config, text_config = sizes or configs()
    with init_empty_weights():
        picture, text = BlipVisionModel(config), BlipTextModel(text_config, add_pooling_layer=False)
    fill(picture, {_renamed(k.removeprefix(PICTURE)): t for k, t in tensors.items() if k.startswith(PICTURE)}, where)
    fill(text, {k.removeprefix(TEXT): t for k, t in tensors.items() if k.startswith(TEXT)}, where)
    return Reward(picture, text, *fold(tensors, layers_of(tensors, "mlp.layers."))).eval()


def word_pieces(prompts: Sequence[str], tokenizer: Any) -> dict[str, Tensor]:
    """Prompts as BERT's word pieces, 35 of each: shorter ones are padded, longer ones cut."""
    return dict(tokenizer(list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"))


def _renamed(key: str) -> str:
    for old, new in RENAMED.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in IN_A_BLOCK.items():
        key = key.replace(old, new)
    return key


def _load(weights: Weights) -> Looks:
    path = weights.find(NAME, PLACES)
    model, tokenizer = build(read(path, ("blip.", "mlp.")), str(path)), _tokenizer(weights)
    device, dtype = weights.device.device, weights.precision
    model.picture.to(device, dtype)
    model.text.to(device, dtype)

    def look(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Seen:
        words = {name: value.to(device) for name, value in word_pieces(prompts, tokenizer).items()}
        return {"score": model(square(pictures).to(device, dtype), words)}

    return look


def _tokenizer(weights: Weights) -> Any:
    from transformers import BertTokenizer

    path = weights.find(BERT, PIECES)
    try:
        return BertTokenizer(str(path))
    except Exception as error:
        problem = f"{path} is no list of BERT's word pieces: {error}"
        raise SpinliteError(problem, fix="name its vocab.txt: --weights bert=FILE") from None


NETWORK = Network(NAME, _load, {NAME: PLACES, BERT: PIECES})
COLUMNS = (Column(NAME, NAME, plain("score"), "ImageReward v1.0; prompts are cut at 35 word pieces"),)
