"""Damaged and hostile input: whatever a file holds, the answer is a result or a SpinliteError, and it comes soon.

    SPINLITE_FUZZ=100000 python -m pytest tests/test_fuzz.py -n 2

Each target reads files that really work, changed at random: bytes, lines, tokens and header fields. The seed is the input's
number, so a failure names the input that made it.
"""

import faulthandler
import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from spinlite.config.load import load_settings
from spinlite.config.presets import shipped_presets
from spinlite.config.prompts import read_prompts
from spinlite.config.settings import Settings
from spinlite.data.survey import examine
from spinlite.errors import SpinliteError
from spinlite.export.inspect import inspect
from spinlite.lora.read import open_lora
from spinlite.lora.resize import resize
from spinlite.report.page import write_report
from spinlite.runs.run import Run
from spinlite.selfplay import train
from tests.toy import Quiet, changed

TOTAL = int(os.environ.get("SPINLITE_FUZZ", "2000"))
SECONDS = 30  # for one input: beyond it, it hangs
TOKENS = [
    b"", b"\x00", b"\x1b[31m", b"\xff\xfe", b"\xe2\x80\xae", b"[" * 900, b"{" * 900, b"9" * 5000, b"-1", b"1e999", b"nan",
    b"inf", b"null", b"true", b'"', b"'", b"\\", b"\n", b"\r\n", b"\r", b"#", b"=", b",", b"../", b"C:\\new", b"~", b"%s",
    b"{0}", b"\xc2\xb2", b"<b>", b"a" * 5000, b"\xed\xa0\x80",
]  # fmt: skip

ODD = [None, [], {}, "x", -1, 0, 2**63, 1e300, [1, 2, 3], [0], [[1]], [2**40, 2**40], True, "F4", "F8_E4M3", "I64", "BOOL"]


def damage(content: bytes, random_: random.Random) -> bytes:
    """The bytes with one to four changes."""
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(content) + 1)
        to = min(len(content), at + random_.choice([0, 1, 2, 8, 60]))
        match random_.randrange(6):
            case 0:
                content = content[:at] + random_.choice(TOKENS) + content[to:]
            case 1:
                content = content[:at] + random_.randbytes(random_.randint(1, 8)) + content[to:]
            case 2:
                content = content[:at]
            case 3:
                content = content[:at] + content[to:]
            case 4:
                lines = content.split(b"\n")
                random_.shuffle(lines)
                content = b"\n".join(lines)
            case _:
                other = random_.randrange(len(content) + 1)
                content = content[:at] + content[other : other + 200] + content[to:]
    return content


def damage_header(content: bytes, random_: random.Random) -> bytes:
    """A safetensors file with one field of its header changed to something odd; its length is right."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = random_.choice(list(header))
    odd = random_.choice(ODD)
    if isinstance(header[name], dict) and header[name] and random_.random() < 0.8:
        key = random_.choice(list(header[name]))
        header[name][key] = odd
    elif random_.random() < 0.5:
        header[random_.choice(["", "\x1b[2J", "lora_unet_", name + ".alpha", "a" * 3000, name[::-1]])] = header.pop(name)
    else:
        header[name] = odd
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def fuzz(name: str, share: float, try_one: Callable[[int, random.Random], None]) -> None:
    """Try `share` of all inputs. Anything but a SpinliteError fails, and so does an input that hangs."""
    for number in range(max(1, round(share * TOTAL))):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try_one(number, random.Random(f"{name} {number}"))
        except SpinliteError as error:
            assert error.problem and error.fix, f"{name} {number}"
        except Exception as error:
            raise AssertionError(f"{name} {number}: {type(error).__name__}: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()


def test_presets(tmp_path: Path):
    texts = [path.read_bytes() for path in shipped_presets().values()]

    def try_one(number: int, random_: random.Random) -> None:
        (tmp_path / "p.toml").write_bytes(damage(random_.choice(texts), random_))
        load_settings(str(tmp_path / "p.toml"))

    fuzz("preset", 0.25, try_one)


def test_overrides():
    names = [f"{section}.{key}" for section, keys in Settings().model_dump().items() if isinstance(keys, dict) for key in keys]

    def try_one(number: int, random_: random.Random) -> None:
        text = f"{random_.choice(names)}={random_.choice(['1', '0', 'x', '-1', 'true', '[]', '{}', '1e5', 'none'])}"
        load_settings("demo", [damage(text.encode(), random_).decode("utf-8", "replace") if number % 2 else text])

    fuzz("override", 0.1, try_one)


def test_captions_and_tables(tmp_path: Path):
    folder = tmp_path / "pictures"
    files = {
        "a.txt": b"1girl, red hair\nsecond line", "b.json": b'{"caption": "a cat", "tags": ["x", "y"]}',
        "metadata.jsonl": b'{"file_name": "a.png", "text": "one"}\n{"file_name": "b.png", "text": "two"}\n',
        "captions.csv": b'file_name,text\na.png,one\nb.png,"two, three"\n', "c.caption": "Müller".encode(),
    }  # fmt: skip

    def try_one(number: int, random_: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("a.png", "b.png", "c.png"):
            Image.new("RGB", (8, 8), (number % 255, 0, 0)).save(folder / name)
        for name, content in files.items():
            if random_.random() < 0.7:
                (folder / name).write_bytes(damage(content, random_) if random_.random() < 0.7 else content)
        settings = load_settings("demo", data__folder=str(folder))
        examine(settings.data, False, headers=True)

    fuzz("captions", 0.2, try_one)


def test_lora_files(tmp_path: Path):
    good = tmp_path / "good.safetensors"
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {
        f"{module}.lora_down.weight": torch.randn(4, 320), f"{module}.lora_up.weight": torch.randn(320, 4),
        f"{module}.alpha": torch.tensor(4.0), f"{text}.lora_down.weight": torch.randn(4, 768),
        f"{text}.lora_up.weight": torch.randn(3072, 4),
    }  # fmt: skip
    save_file(tensors, good, {"ss_network_dim": "4", "ss_base_model_version": "sd_v1"})
    content, path = good.read_bytes(), tmp_path / "x.safetensors"

    def try_one(number: int, random_: random.Random) -> None:
        path.write_bytes((damage if random_.random() < 0.3 else damage_header)(content, random_))
        for use in (inspect, open_lora, lambda file: resize(file, 2, tmp_path / "out.safetensors")):
            try:
                use(path)
            except SpinliteError as error:
                assert error.problem and error.fix

    fuzz("lora", 0.2, try_one)


def test_run_folders(tmp_path: Path, small: Settings):
    made = tmp_path / "runs" / "toy"
    train(changed(small, run__rounds=1, learn__updates=2), made, Quiet())
    folder = tmp_path / "other" / "toy"

    def try_one(number: int, random_: random.Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        path = random_.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
        safe = path.suffix == ".safetensors" and random_.random() < 0.7
        path.write_bytes((damage_header if safe else damage)(path.read_bytes(), random_))
        run = Run.open_existing(folder)
        _ = run.best, run.levers
        write_report([folder], tmp_path / "page.html")

    fuzz("run folder", 0.15, try_one)


def test_prompt_files(tmp_path: Path):
    def try_one(number: int, random_: random.Random) -> None:
        lines = "a cat --s 20\na dog, (red:1.2) --n a --w 64\nMüller --l 2.5 --d 7\n"
        (tmp_path / "p.txt").write_bytes(damage(lines.encode(), random_))
        read_prompts([f"@{tmp_path / 'p.txt'}"])

    fuzz("prompts", 0.1, try_one)
