"""How an inspected file is shown: one screen for people, JSON for programs."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from spinlite.export.reports import LoraReport, ModelReport
from spinlite.families.lora_facts import Verdict
from spinlite.progress import describe_size

LONG = 160  # characters that are shown of a metadata value
TAGS = 8
BAR = 24
PICTURES = ("modelspec.thumbnail", "ssmd_cover_images")
WORTH = {  # metadata that people look for: the first key that the file has
    "title": ("modelspec.title", "ss_output_name"), "trained on": ("ss_sd_model_name",), "date": ("modelspec.date",),
    "trigger": ("modelspec.trigger_phrase",), "pictures": ("ss_num_train_images",), "author": ("modelspec.author",),
    "licence": ("modelspec.license",), "says": ("modelspec.description", "ss_training_comment"),
}  # fmt: skip


def as_json(report: LoraReport | ModelReport) -> str:
    """Everything except embedded pictures."""
    tree = asdict(report)
    tree["metadata"] = {k: v if k not in PICTURES else f"{len(v)} characters" for k, v in report.metadata.items()}
    return json.dumps(tree, ensure_ascii=False, indent=2)


def show(screen: Screen, report: LoraReport | ModelReport) -> None:
    """One screen. Text from the file is shown as it is, never as markup."""
    if isinstance(report, LoraReport):
        _lora(screen, report)
    else:
        _model(screen, report)


def _fact(screen: Screen, name: str, fact: str) -> None:
    if fact:
        screen.print(Text.assemble("  ", (f"{name:<14}", "dim"), " ", fact))


def _lora(screen: Screen, report: LoraReport) -> None:
    screen.print(Text.assemble((report.file, "bold"), f"  {report.what} for {report.base}, {describe_size(report.size)}"))
    modules = ", ".join(f"{count} of the {part}" for part, count in report.modules.items())
    scale = f"{report.rank}, alpha {report.alpha}" if report.rank else ""
    for name, fact in {
        "layout": f"{report.layout}, {report.precision}", "rank": scale, "modules": modules, "predicts": report.prediction,
        "hash": f"{report.hash[:12]}  (AutoV3, as A1111 and model sites show it)",
    }.items():  # fmt: skip
        _fact(screen, name, fact)
    _header(screen, report.metadata)
    for note in report.notes:
        screen.print(Text(f"  ! {note}", style="yellow"))
    if report.blocks and report.rank:
        screen.print(_blocks(report))
    if report.programs:
        screen.print(_programs(report.programs))
    elif report.what not in ("LoRA", "DoRA"):
        screen.print(Text(f"  spinlite does not know which programs load a {report.what}", style="dim"))


def _blocks(report: LoraReport) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 2))
    for heading, side in (("block", "left"), ("modules", "right"), ("norm of the change", "left")):
        table.add_column(heading, justify=side)  # pyright: ignore[reportArgumentType]
    largest = max(block.norm for block in report.blocks) or 1.0
    for block in report.blocks:
        table.add_row(block.name, str(block.modules), f"{block.norm:<9.3g} {'█' * round(BAR * block.norm / largest)}")
    return table


def _programs(programs: list[Verdict]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 2))
    for heading in ("program", "loads", ""):
        table.add_column(heading, no_wrap=heading != "")
    for v in programs:
        style = "green" if v.right == v.of else "red" if not v.right else "yellow"
        count = "all" if v.right == v.of else "nothing" if not v.right else f"{v.right} of {v.of}"
        table.add_row(Text(v.program), Text(count, style=style), Text(v.why))
    return table


def _header(screen: Screen, metadata: dict[str, str]) -> None:
    for name, keys in WORTH.items():
        _fact(screen, name, next((_brief(metadata[key]) for key in keys if metadata.get(key, "None") != "None"), ""))
    if tags := _tags(metadata.get("ss_tag_frequency", "")):
        shown = ", ".join(f"{tag} ({count})" for tag, count in tags.most_common(TAGS))
        _fact(screen, "tags", shown + (f", and {len(tags) - TAGS} more" if len(tags) > TAGS else ""))
    if (strength := metadata.get("spinlite.strength", "1.0")) != "1.0":
        _fact(screen, "strength", f"{_brief(strength)} x the trained strength is baked into the weights")
    pictures = " (with a picture)" if any(key in metadata for key in PICTURES) else ""
    _fact(screen, "metadata", f"{len(metadata)} entries{pictures}; add --json to see them" if metadata else "none")


def _model(screen: Screen, report: ModelReport) -> None:
    screen.print(Text.assemble((report.file, "bold"), f"  {report.what}, {describe_size(report.size)}"))
    zero = ", zero terminal SNR" * report.zero_snr
    _fact(screen, "predicts", report.prediction + zero)
    for part in report.parts:
        _fact(screen, part.name, f"{part.tensors} tensors, {part.parameters / 1e6:,.1f} M parameters, {part.precision}")
    _fact(screen, "hash", f"{report.hash[:10]}  (AutoV2, as A1111 and model sites show it)")
    _header(screen, report.metadata)
    _fact(screen, "spinlite", report.use)


def _tags(text: str) -> Counter[str]:
    total: Counter[str] = Counter()
    tree = _parsed(text)
    for tags in tree.values() if isinstance(tree, dict) else ():
        if isinstance(tags, dict):
            total.update({tag: count for tag, count in tags.items() if isinstance(count, int)})
    return total


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONG else text[:LONG] + " …"
