"""Library errors with a known cause, each with its explanation and its fix."""

import re

from spinlite.doctor.computer import Computer

PIP = "python -m pip install"
KNOWN: tuple[tuple[str, str, str], ...] = (
    (r"torchvision::nms|torchvision.*(incompatible|circular)",
     "torchvision was built for another torch", "python -m pip uninstall -y torchvision"),
    (r"WinError 1455|paging file",
     "Windows' paging file is too small to load torch",
     "raise it: System > About > Advanced system settings > Performance > Advanced > Virtual memory"),
    (r"WinError 126|WinError 1114|c10\.dll|fbgemm\.dll",
     "a system library from Microsoft is missing", "winget install -e --id Microsoft.VCRedist.2015+.x64"),
    (r"OMP: Error #15|libiomp5",
     "two copies of Intel's OpenMP are loaded", "make a fresh environment (python -m venv .venv) and install spinlite there"),
    (r"GLIBC(XX)?_", "this Linux is older than what the packages were built for",
     "use a Linux of 2020 or later (Ubuntu 20.04, Debian 11)"),
    (r"_ARRAY_API|numpy\.core\.multiarray|numpy\.dtype size changed",
     "a package was built for another numpy", f"{PIP} --upgrade --force-reinstall numpy"),
    (r"out of memory|CUBLAS_STATUS_ALLOC_FAILED",
     "other programs hold the card's memory", "close them; `nvidia-smi` lists them"),
    (r"unknown error|CUDA_ERROR_UNKNOWN|code=?\(?999",
     "the driver lost the card, as after a suspend", "restart the computer"),
    (r"Permission denied.*nvidia|nvidia.*Permission denied",
     "this user may not use the card", "sudo usermod -aG video,render $USER   (then log in again)"),
    (r"No space left", "the disk is full", "free some space"),
    (r"\(code (-4|132|3221225501)\)",
     "the processor lacks an instruction that the package was built with", "use a computer with AVX2 (2013 or later)"),
)  # fmt: skip


def remedy(error: str, computer: Computer) -> tuple[str, str] | None:
    """(why, fix) of a library's error; None if it is unknown."""
    if re.search(r"no kernel image|not compatible with the current PyTorch", error):
        return "this torch has no machine code for this card", torch_command(computer)
    if re.search(r"driver.*(too old|insufficient)", error):
        return "NVIDIA's driver is older than this torch needs", driver_command(computer)
    if re.search(r"libcu|libnv|undefined symbol|libtorch|libc10", error):
        return "libraries of different versions are mixed", torch_command(computer)
    return next(((why, fix) for pattern, why, fix in KNOWN if re.search(pattern, error, re.IGNORECASE)), None)


def torch_build(computer: Computer) -> str:
    """The build of torch that suits the card and its driver.

    For torch 2.13: cu126 supports compute capability 5.0 to 9.0 and drivers from CUDA 12 on, cu130 supports 7.5 to 12.0 and
    drivers from CUDA 13 on.
    """
    card = computer.nvidia
    if not card:
        return "cpu"
    return "cu126" if before_turing(card.capability, card.name) or (computer.driver_cuda or (13,)) < (13,) else "cu130"


def before_turing(capability: tuple[int, ...] | None, name: str) -> bool:
    """Whether a card has compute capability < 7.5; judged by its name if the driver does not tell."""
    if capability:
        return capability < (7, 5)
    return bool(re.search(r"GTX (7|9|10)\d\d\b|TITAN [XVZ]|Tesla [KMPV]\d|Quadro [KMP]\d", name))


def serves(archs: tuple[str, ...], capability: tuple[int, ...]) -> bool:
    """Whether a torch built for these architectures runs on a card.

    Machine code ("sm_") runs on its own major version from its minor version up, portable code ("compute_") on everything
    later (CUDA C++ Programming Guide, binary and PTX compatibility).
    """
    for arch in archs:
        kind, _, digits = arch.partition("_")
        number = re.match(r"\d+", digits)
        if number:
            has = divmod(int(number[0]), 10)
            if (kind == "compute" and has <= capability) or (has[0] == capability[0] and has[1] <= capability[1]):
                return True
    return False


def torch_command(computer: Computer) -> str:
    """The command that installs the right build of torch, over whatever is installed."""
    tag, version = torch_build(computer), computer.tested.get("torch", "")
    if computer.system == "Darwin":
        return f"{PIP} torch=={version}" if version else f"{PIP} torch"
    package = f"torch=={version}+{tag}" if version else "--force-reinstall torch"
    return f"{PIP} {package} --index-url https://download.pytorch.org/whl/{tag}"


def driver_command(computer: Computer) -> str:
    """How to get a newer NVIDIA driver."""
    if computer.system == "Windows" or computer.wsl:
        where = " (in Windows, not in WSL)" if computer.wsl else ""
        return f"install the newest driver from https://www.nvidia.com/drivers{where}"
    return "sudo ubuntu-drivers install   (not on Ubuntu: install your distribution's NVIDIA driver), then restart"
