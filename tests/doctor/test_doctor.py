"""spinlite doctor: what it says of made-up computers, and that a library that crashes, hangs or is missing is only told of."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import spinlite
from spinlite.doctor import probes
from spinlite.doctor.cards import linux_cards, nvidia_smi, read_smi, windows_cards
from spinlite.doctor.computer import Card, Computer, Torch, Trial
from spinlite.doctor.diagnosis import Finding, diagnose
from spinlite.doctor.known import serves
from spinlite.doctor.screen import as_json, ready

PINS = {"torch": "2.13.0", "bitsandbytes": "0.50.2", "diffusers": "0.42.1"}
ALL_WELL = {name: Trial(True, "fine") for name in probes.NAMES}
CARD = Card("NVIDIA GeForce RTX 3060", total=12288, free=11500, driver="580.95.05", capability=(8, 6))
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
CUDA = Torch("2.13.0+cu130", "CUDA 13.0", "cuda", CARD.name, (8, 6), ARCHS, 12287, 11400)
GOOD = Computer(
    cards=(CARD,), driver_cuda=(13, 0), torch=CUDA, trials=ALL_WELL, installed=PINS, tested=PINS, memory=32000,
    runs="/home/a/runs", runs_free=200_000, hub="/home/a/.cache/huggingface/hub", hub_free=200_000,
)  # fmt: skip
CPU = Torch("2.13.0+cpu", "CPU")


def but(**changes: Any) -> Computer:
    """The good computer with these differences; `card__x` and `torch__x` are the card's and torch's."""
    parts: dict[str, dict[str, Any]] = {"card": {}, "torch": {}}
    for name in [name for name in changes if "__" in name]:
        part, _, key = name.partition("__")
        parts[part][key] = changes.pop(name)
    changes.setdefault("cards", (dataclasses.replace(CARD, **parts["card"]),))
    changes.setdefault("torch", dataclasses.replace(CUDA, **parts["torch"]))
    if isinstance(changes.get("trials"), dict):
        changes["trials"] = ALL_WELL | changes["trials"]
    return dataclasses.replace(GOOD, **changes)


def bad(computer: Computer) -> list[Finding]:
    return [finding for finding in diagnose(computer) if finding.mark in ("warn", "fail")]


# Diagnosis


def test_a_good_computer_has_nothing_to_fix():
    assert not bad(GOOD) and all(not finding.fix for finding in diagnose(GOOD))
    assert ready(diagnose(GOOD))


INDEX = "https://download.pytorch.org/whl/"
OLD_CARD = {"card__name": "NVIDIA GeForce GTX 1080", "card__capability": (6, 1)}
TOO_OLD = "RuntimeError: The NVIDIA driver on your system is too old (found version 12040)."
DLL = "OSError: [WinError 126] The specified module could not be found. Error loading fbgemm.dll"
BROKEN: dict[str, tuple[Computer, str, str, str, str]] = {  # computer, mark, what, in why, in fix
    "cpu-torch": (but(torch=CPU), "fail", "torch", "built for CPUs only: it can't use the NVIDIA GeForce RTX 3060",
                  f"python -m pip install torch==2.13.0+cu130 --index-url {INDEX}cu130"),
    "cpu-torch-old-card": (but(torch=CPU, **OLD_CARD), "fail", "torch", "CPUs only",
                           f"torch==2.13.0+cu126 --index-url {INDEX}cu126"),
    "cpu-torch-card-by-name": (but(torch=CPU, card__name="Quadro P4000", card__capability=None), "fail", "torch", "", "cu126"),
    "cpu-torch-old-driver": (but(torch=CPU, driver_cuda=(12, 4)), "fail", "torch", "CPUs only", "cu126"),
    "no-torch": (but(torch=None, trials={"torch": Trial(False, missing=True)}), "fail", "torch", "nothing can run", "+cu130"),
    "no-torch-no-card": (but(torch=None, cards=(), trials={"torch": Trial(False, missing=True)}), "fail", "torch", "nothing",
                         f"torch==2.13.0+cpu --index-url {INDEX}cpu"),
    "torch-without-dlls": (but(torch=None, trials={"torch": Trial(False, DLL)}), "fail", "torch", "Microsoft", "VCRedist"),
    "page-file": (but(torch=None, trials={"torch": Trial(False, "OSError: [WinError 1455] The paging file is too small")}),
                  "fail", "torch", "paging file", "Virtual memory"),
    "mixed-cuda": (but(torch=None, trials={"torch": Trial(False, "ImportError: libcudnn.so.9: undefined symbol: x")}),
                   "fail", "torch", "mixed", "+cu130"),
    "hidden-card": (but(torch__device="cpu", visible=""), "fail", "torch", "hides the card", "CUDA_VISIBLE_DEVICES"),
    "driver-too-old-for-torch": (but(driver_cuda=(12, 4)), "fail", "driver", "built for CUDA 13", "cu126"),
    "driver-too-old-said-by-torch": (but(torch__device="cpu", torch__trouble=TOO_OLD), "fail", "torch", "older", "driver"),
    "new-card-old-driver": (but(card__capability=(12, 0), driver_cuda=(12, 4)), "fail", "driver", "12.8", "driver"),
    "no-driver": (but(card__driver="", driver_cuda=None, torch=CPU), "fail", "driver", "can't be used", "driver"),
    "no-driver-wsl": (but(card__driver="", driver_cuda=None, torch=CPU, wsl=2), "fail", "driver", "", "in Windows, not in WSL"),
    "card-newer-than-torch": (but(torch__capability=(12, 0), torch__archs=("sm_80", "sm_86", "sm_90")), "fail", "torch",
                              "no machine code for sm_120", "cu130"),
    "card-older-than-torch": (but(torch__capability=(6, 1), **OLD_CARD), "fail", "torch", "no machine code for sm_61", "cu126"),
    "rocm": (but(cards=(Card("AMD Radeon RX 7900", "amd"),), torch__build="ROCm 6.4"), "warn", "torch", "not tested", ""),
    "amd-without-rocm": (but(cards=(Card("AMD Radeon RX 7900", "amd"),), torch=CPU), "warn", "card", "NVIDIA's", ""),
    "no-card": (but(cards=(), torch=CPU), "warn", "card", "training runs on the CPU", ""),
    "ancient-card": (but(card__capability=(3, 5), torch=CPU), "warn", "card", "too old for any torch", ""),
    "small-card": (but(card__total=4096, torch__total=4096, torch__free=4000), "warn", "card", "8 GB", "train demo"),
    "card-in-use": (but(torch__free=5000), "warn", "card", "other programs hold 7.1 GB", "close browsers"),
    "gtx-16": (but(card__name="NVIDIA GeForce GTX 1660 Ti"), "warn", "GTX 16", "NaN", "memory.precision=fp32"),
    "python-32": (but(bits=32), "fail", "Python", "64-bit", "Python 3.12"),
    "python-new": (but(python=(3, 15, 0), torch=None), "fail", "Python", "3.11 to 3.14", "Python 3.12"),
    "python-new-but-torch": (but(python=(3, 15, 0)), "warn", "Python", "newer", "python3.12 -m venv"),
    "python-free-threaded": (but(free_threaded=True), "warn", "Python", "free-threaded", "Python 3.12"),
    "xformers-for-another-torch": (but(trials={"xformers": Trial(False, "NotImplementedError: No operator found")}), "warn",
                                   "xformers", "built for another torch", "pip uninstall -y xformers"),
    "no-bitsandbytes": (but(trials={"adamw8bit": Trial(False, missing=True)}, installed={}), "fail", "8-bit AdamW",
                        "not installed", "bitsandbytes==0.50.2"),
    "old-bitsandbytes": (but(trials={"adamw8bit": Trial(False, "boom")}, installed=PINS | {"bitsandbytes": "0.41.0"},
                             unmet=("bitsandbytes<1,>=0.49 (0.41.0)",)), "fail", "8-bit AdamW", "0.41.0 is too old",
                         "bitsandbytes==0.50.2"),
    "nf4": (but(trials={"nf4": Trial(False, "boom")}), "warn", "NF4", "nf4 is not possible", "bitsandbytes==0.50.2"),
    "attention": (but(trials={"sdpa": Trial(False, "RuntimeError: no kernel image is available")}), "fail", "attention",
                  "no machine code", "cu130"),
    "torchvision": (but(trials={"step": Trial(False, "RuntimeError: operator torchvision::nms does not exist")}), "fail",
                    "training", "torchvision was built for another torch", "pip uninstall -y torchvision"),
    "crashed": (but(trials={"step": Trial(False, "ended its process (code -4)")}), "fail", "training", "instruction", "AVX2"),
    "memory-taken": (but(trials={"step": Trial(False, "OutOfMemoryError: CUDA out of memory.")}), "fail", "training",
                     "other programs", "nvidia-smi"),
    "unmet": (but(unmet=("diffusers<1,>=0.42 (0.30.0)",), installed=PINS | {"diffusers": "0.30.0"}), "fail", "packages", "",
              "pip install diffusers==0.42.1"),
    "old-torch": (but(unmet=("torch>=2.6 (2.4.0)",)), "fail", "packages", "", "torch==2.13.0+cu130"),
    "disk": (but(runs_free=2000), "warn", "disk", "may not fit", "--runs"),
    "hub": (but(hub_free=2000), "warn", "disk", "7 GB", "HF_HOME"),
    "memory": (but(memory=8000), "warn", "memory", "SDXL", "close other programs"),
    "memory-wsl": (but(memory=8000, wsl=2), "warn", "memory", "WSL gets half", ".wslconfig"),
    "wsl1": (but(wsl=1), "warn", "system", "sees no card", "wsl --set-version"),
    "wsl-on-windows-disk": (but(wsl=2, runs="/mnt/c/a/runs"), "warn", "folder", "slower", "cd ~"),
    "long-paths": (but(system="Windows", long_paths=False), "warn", "long paths", "260", "LongPathsEnabled 1"),
    "mac": (but(system="Darwin", cards=(), torch=Torch("2.13.0", "CPU", "mps")), "warn", "system", "Mac", ""),
}  # fmt: skip


@pytest.mark.parametrize(("computer", "mark", "what", "why", "fix"), BROKEN.values(), ids=BROKEN)
def test_a_known_bad_combination_is_named_with_its_fix(computer: Computer, mark: str, what: str, why: str, fix: str):
    found = [finding for finding in bad(computer) if finding.what == what]
    assert len(found) == 1, bad(computer)
    assert found[0].mark == mark and why in found[0].why and fix in found[0].fix, found[0]
    assert ready(diagnose(computer)) == (mark != "fail")
    told = json.loads(as_json(computer, diagnose(computer)))
    assert told["ready"] == (mark != "fail") and dataclasses.asdict(found[0]) in told["findings"]


def test_other_versions_than_the_tested_ones_are_noted_and_a_local_build_is_the_same_version():
    newer = but(installed=PINS | {"diffusers": "0.43.0", "torch": "2.13.0+cu130"})
    noted = [f for f in diagnose(newer) if f.what == "packages"]
    assert noted[0].mark == "note" and noted[0].found == "diffusers 0.43.0 (tested: 0.42.1)"
    assert noted[0].fix == "python -m pip install diffusers==0.42.1"
    assert not [f for f in diagnose(but(installed=PINS | {"torch": "2.13.0+cu130"})) if f.mark == "note"]


def test_machine_code_serves_its_own_major_version_and_portable_code_everything_later():
    assert serves(("sm_80",), (8, 9)) and serves(("compute_90",), (12, 0)) and serves(("sm_90a",), (9, 0))
    assert not serves(("sm_86",), (8, 0)) and not serves(("sm_90",), (12, 0)) and not serves(("compute_90",), (8, 6))


# Cards

SMI = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>550.120</driver_version>
  <cuda_version>12.4</cuda_version>
  <attached_gpus>2</attached_gpus>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA GeForce RTX 3060</product_name>
    <fb_memory_usage><total>12288 MiB</total><reserved>200 MiB</reserved><free>11288 MiB</free></fb_memory_usage>
  </gpu>
  <gpu id="00000000:02:00.0">
    <product_name>NVIDIA GeForce GTX 1080</product_name>
    <fb_memory_usage><total>N/A</total><free>N/A</free></fb_memory_usage>
  </gpu>
</nvidia_smi_log>"""


def test_nvidia_smi_is_read():
    cards, cuda = read_smi(SMI, "8.6\n6.1\n")
    assert cuda == (12, 4)
    assert cards[0] == Card("NVIDIA GeForce RTX 3060", "nvidia", 12288, 11288, "550.120", (8, 6))
    assert cards[1] == Card("NVIDIA GeForce GTX 1080", "nvidia", None, None, "550.120", (6, 1))
    assert [card.capability for card in read_smi(SMI, "")[0]] == [None, None]  # older drivers do not tell it
    assert read_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "") == ([], None)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    (tmp_path / "log.xml").write_text(SMI)
    program.write_text(f'#!/bin/sh\nif [ "$1" = -q ]; then cat "{tmp_path}/log.xml"; else echo 8.6; echo 6.1; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert nvidia_smi() == read_smi(SMI, "8.6\n6.1")
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert nvidia_smi() == ([], None)


def test_linux_knows_its_cards_without_nvidias_program(tmp_path: Path):
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert not list(linux_cards(tmp_path))
    put("dev/dxg", "")
    assert [card.vendor for card in linux_cards(tmp_path)] == ["other"]
    (tmp_path / "dev/dxg").unlink()
    put("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    put("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
    put("sys/bus/pci/devices/0000:02:00.0/vendor", "0x10de\n")
    put("sys/bus/pci/devices/0000:02:00.0/class", "0x040300\n")  # its sound
    assert list(linux_cards(tmp_path)) == [Card("an NVIDIA card", driver="")]
    put("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 3060\nIRQ:   \t\t 130\n")
    put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.120  Fri Sep 13\nGCC version:\n")
    assert list(linux_cards(tmp_path)) == [Card("NVIDIA GeForce RTX 3060", driver="550.120")]


def test_windows_cards_come_from_its_registry(monkeypatch: pytest.MonkeyPatch):
    held = {("0000", "DriverDesc"): "Intel(R) UHD Graphics", ("0001", "DriverDesc"): "NVIDIA GeForce RTX 3060",
            ("0001", "HardwareInformation.qwMemorySize"): 12 * 2**30}  # fmt: skip
    monkeypatch.setattr("spinlite.doctor.cards.registered", lambda key, name, kind: held.get((key.rpartition("\\")[2], name)))
    assert list(windows_cards()) == [Card("Intel(R) UHD Graphics", "intel"), Card("NVIDIA GeForce RTX 3060", "nvidia", 12288)]


# Trials


def library(folder: Path, name: str, code: str) -> None:
    """A package that stands in for a broken one, found before the real one."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def test_a_library_that_crashes_or_hangs_costs_only_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library(tmp_path, "bitsandbytes", "import os, sys; print('gone', file=sys.stderr, flush=True); os.abort()")
    library(tmp_path, "xformers", "import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    heard: list[str] = []
    found, _ = probes.run_trials(["sdpa", "adamw8bit", "bf16"], heard.append)
    assert list(found) == ["sdpa", "adamw8bit", "bf16"] and found["sdpa"].ok and found["bf16"].ok
    assert not found["adamw8bit"].ok and "ended its process (code" in found["adamw8bit"].said
    assert "gone" in found["adamw8bit"].said and "bf16" in heard
    monkeypatch.setattr(probes, "SECONDS", 2.0)
    found, _ = probes.run_trials(["xformers"])
    assert found["xformers"] == Trial(False, "did not end within 2 s")


def doctor(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m spinlite doctor` in a fresh interpreter."""
    paths = [environment.pop("first", ""), str(Path(spinlite.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "spinlite", "doctor", *words], capture_output=True, text=True, encoding="utf-8", cwd=folder,
        timeout=600, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment, check=False,
    )  # fmt: skip


def test_without_a_torch_that_works_the_doctor_says_how_to_fix_it(tmp_path: Path):
    (tmp_path / "broken").mkdir()
    library(tmp_path / "broken", "torch", f"raise OSError({DLL!r})")
    ended = doctor(tmp_path, first=str(tmp_path / "broken"))
    assert ended.returncode == 1 and not ended.stderr and "Traceback" not in ended.stdout
    assert "fix: winget install -e --id Microsoft.VCRedist.2015+.x64" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("Not ready: fix torch first")


def test_everything_is_really_tried_here(tmp_path: Path):
    ended = doctor(tmp_path, "--json")
    told = json.loads(ended.stdout)
    trials = told["computer"]["trials"]
    assert list(trials) == list(probes.NAMES)
    for name in ("torch", "bf16", "sdpa", "adamw8bit", "nf4", "step"):
        assert trials[name]["ok"], trials[name]
    assert "log 2" in trials["step"]["said"]
    assert told["computer"]["installed"]["torch"].startswith("2.") and told["computer"]["tested"]["torch"]
    assert ended.returncode == (0 if told["ready"] else 1)
    assert not list(tmp_path.iterdir())
