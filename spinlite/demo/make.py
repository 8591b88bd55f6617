"""Makes the demo that is shipped with spinlite, from public materials and nothing else.

    python -m spinlite.demo.make --materials DIR --out DIR [--work DIR] [--start BASE] [--only STEP ...]

DIR of --materials holds these archives, as `npm pack NAME@VERSION` and `pip download --no-deps` leave them:

    npm pack emoji-datasource-google@16.0.0         Noto Emoji pictures, 64 px, and the list of emoji (Apache-2.0)
    npm pack emoji-datasource-twitter@16.0.0        Twemoji pictures, 64 px (CC-BY-4.0)
    npm pack @lobehub/fluent-emoji-3d@1.1.0         Fluent emoji 3D, 256 px (MIT)
    npm pack cldr-annotations-full@48.2.0           English names and keywords (Unicode-3.0)
    npm pack cldr-annotations-derived-full@48.2.0   the same, of composed emoji
    pip download --no-deps open_clip_torch==3.3.0   CLIP's byte-pair merges (MIT)

It reads the archives in place and unpacks none. Steps: `pictures` writes the two Fluent folders, `web` draws a sheet of what
the base sees, `vae` learns the VAE, `unet` learns UNet and text encoder and writes the base every few minutes, `look` learns
the classifier that judges the look, `draw` draws a sheet of samples. Every step goes on where it was stopped. How long the
shipped weights took is in README.md beside this file; a GPU is used if there is one, and should need minutes (not timed).
"""

import argparse
import re
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from .base import sample, sheet, write_base
from .look import train as train_look
from .loop import device
from .materials import (
    FLUENT,
    NOTO,
    TWEMOJI,
    Code,
    Concept,
    read_annotations,
    read_concepts,
    read_merges,
    read_pictures,
    split,
    write_folder,
)
from .unet import Pair, encode_web, train_pair
from .vae import train_vae
from .web import Drawn, contact, gallery
from .words import write_tokenizer

PASSED_OVER = re.compile("hand|person-role|person-symbol")  # kinds whose members a small UNet mixes up
HANDS_AT = {  # hand: archive, folder, ending
    "Fluent 3D": (FLUENT, "package/assets/", ".webp"),
    "Noto": (NOTO, "package/img/google/64/", ".png"),
    "Twemoji": (TWEMOJI, "package/img/twitter/64/", ".png"),
}
STEPS = ("pictures", "web", "vae", "unet", "look", "draw")
LOOK_AT = [
    "red apple", "banana", "strawberry", "watermelon", "pizza", "hamburger", "doughnut", "birthday cake",
    "dog face", "cat face", "panda", "frog", "tiger face", "penguin", "fish", "octopus", "butterfly", "turtle",
    "grinning face", "smiling face with sunglasses", "crying face", "angry face", "alien", "robot", "ghost",
    "red heart", "sunflower", "cactus", "evergreen tree", "mushroom", "rocket", "airplane", "automobile", "bicycle",
    "house", "castle", "umbrella", "fire", "guitar", "soccer ball", "key", "light bulb", "hammer", "books", "crown",
    "clown face", "rainbow", "snowman",
]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Makes spinlite's demo from public materials.")
    parser.add_argument("--materials", type=Path, required=True, help="folder of the archives that the docstring names")
    parser.add_argument("--out", type=Path, required=True, help="where base/, fluent/ and judge/ go")
    parser.add_argument("--start", type=Path, help="a base to go on from, its VAE as it is (default: from scratch)")
    parser.add_argument("--work", type=Path, help="checkpoints and caches (default: OUT/work)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="steps to do (default: all)")
    chosen = parser.parse_args()
    chosen.work = chosen.work or chosen.out / "work"
    return chosen


def vae_pictures(
    materials: Path, noto: dict[Code, Tensor], fluent: dict[Code, Tensor], unseen: set[Code], held_out: set[Code]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the VAE learns from, (N, 3, 64, 64), and what it is measured on, by name."""
    twemoji = read_pictures(materials / TWEMOJI, "package/img/twitter/64/", ".png")
    seen = [picture for code, picture in noto.items() if code not in held_out]
    seen += [*twemoji.values(), *(picture for code, picture in fluent.items() if code not in unseen)]
    measured = {
        "noto": torch.stack([noto[code] for code in sorted(held_out)]),
        "fluent": torch.stack([fluent[code] for code in sorted(unseen)]),
    }
    return torch.stack(seen), measured


def make_unet(
    vae: AutoencoderKL, drawn: list[Drawn], concepts: list[Concept], tokenizer_folder: Path, options: argparse.Namespace
) -> None:
    """Scales the latents to unit deviation (those of --start are), learns from them, and writes the base every few minutes."""
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    latents = encode_web(vae, drawn, options.work / "latents.pt")
    if not options.start:
        vae.register_to_config(scaling_factor=1 / latents.float().std().item())
    scale = vae.config["scaling_factor"]
    print(f"unet: {len(concepts)} things in {len(drawn)} drawings, latents of deviation {1 / scale:.3f}", flush=True)

    def keep(mean: Pair) -> None:
        write_base(vae, mean, tokenizer_folder, options.out / "base")

    keep(train_pair(latents * scale, drawn, concepts, tokenizer, options.work, keep, options.start))


def make(options: argparse.Namespace) -> None:
    """Reads the archives and does the steps that need them."""
    materials, out, work, steps = options.materials, options.out, options.work, set(options.only)
    concepts = read_concepts(materials)
    noto = read_pictures(materials / NOTO, "package/img/google/64/", ".png")
    fluent = read_pictures(materials / FLUENT, "package/assets/", ".webp")
    parts = split(concepts, fluent)
    if "pictures" in steps:
        write_folder(out / "fluent", parts.fluent, fluent)
        write_folder(out / "judge", parts.judge, fluent)
    unseen = {concept.code for concept in parts.fluent + parts.judge}
    hands = {name: read_pictures(materials / archive, *where, alpha=True) for name, (archive, *where) in HANDS_AT.items()}
    lesson = [concept for concept in concepts if concept.taught and not PASSED_OVER.match(concept.kind)]
    drawn = gallery(lesson, hands, unseen)
    if "web" in steps:
        sheet(*contact(drawn), columns=12).save(out / "web.png")
    if not {"vae", "unet", "look"} & steps:
        return
    if options.start:
        vae = AutoencoderKL.from_pretrained(options.start / "vae", torch_dtype=torch.float32).to(device())  # type: ignore[arg-type]
    else:
        seen, measured = vae_pictures(materials, noto, fluent, unseen, parts.held_out_noto)
        vae = train_vae(seen, measured, work)  # one that is complete is read back
    if "unet" in steps:
        texts = sorted({text for name, words in read_annotations(materials).values() for text in (name, *words)})
        write_tokenizer(read_merges(materials), texts, work / "tokenizer")
        make_unet(vae, drawn, lesson, work / "tokenizer", options)
    if "look" in steps:
        judged = {concept.code for concept in parts.judge}
        known = gallery([concept for concept in lesson if concept.code not in unseen], hands, set())
        others = gallery([concept for concept in lesson if concept.code in judged], hands, set())
        train_look(vae, known, others, out / "look.safetensors")


def main() -> None:
    """Does the steps asked for, in order."""
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    print(f"device: {device()}", flush=True)
    if set(options.only) != {"draw"}:
        make(options)
    if "draw" in options.only:
        sheet(sample(options.out / "base", LOOK_AT), LOOK_AT).save(options.work / "drawn.png")
        print(f"draw: {options.work / 'drawn.png'}", flush=True)


if __name__ == "__main__":
    main()
