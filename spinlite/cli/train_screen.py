"""What a run says at its end: what came of it, where that is, and what to type next."""

import shlex
import sys

from spinlite.cli.console import Console
from spinlite.cli.options import command_line
from spinlite.config.presets import USUAL
from spinlite.config.spelling import to_type
from spinlite.selfplay import Outcome


def show(console: Console, outcome: Outcome) -> None:
    """Say how the run ended. That no round was better than the start comes first: then there is no LoRA to be glad of."""
    if not outcome.best:
        console.say(_nothing_better(outcome))
    if outcome.already:
        console.say(f"{outcome.run.folder} is complete.")
    if outcome.stopped:
        console.say(f"A guard stopped the run: {outcome.stopped}.")
    console.show_rounds(outcome.rounds, -1 if _too_few(outcome) else outcome.best)
    console.show_facts(_results(outcome) | {name: command_line(words) for name, words in _next_commands(outcome).items()})


def in_brief(outcome: Outcome) -> str:
    """How the run ended, in a line."""
    if outcome.stopped:
        return f"a guard stopped it: {outcome.stopped}"
    better = f"round {outcome.best} is the best" if outcome.best else "no round was better than the start"
    return f"done: {_rounds(len(outcome.rounds))}, {better}"


def _nothing_better(outcome: Outcome) -> str:
    """That the result is the start, and what there is instead."""
    run = outcome.run
    if not outcome.rounds:
        return "No round was finished, so there is no LoRA."
    start = "the LoRA that it started from" if run.settings.model.init_lora else "the base"
    return (
        f"No round was better than {start}, so there is no {run.export_path.name}. The last round is in "
        f"{run.last_export_path.name}: look at the sheet before you use it."
    )


def _too_few(outcome: Outcome) -> bool:
    """Whether there were too few held-out pictures to choose the best round by."""
    return any(event.get("enough") is False for event in outcome.rounds)


def _results(outcome: Outcome) -> dict[str, str]:
    """Where everything is, and how much was learned."""
    run, last, best, facts = outcome.run, len(outcome.rounds), outcome.best, {}
    if best and run.export_path.exists():
        few = ", the last: too few pictures are held out to choose by" if _too_few(outcome) else ""
        why = few or (", the best" if best < last else "")
        facts["LoRA"] = f"{run.export_path} (round {best}{why})"
    if best < last and run.last_export_path.exists():
        facts["last"] = f"{run.last_export_path} (round {last})"
    if last and run.sheet_path(last).exists():
        facts["sheet"] = f"{run.sheet_path(last)} (before, after, and your pictures)"
    if last:
        steps, captions = len(run.events("update")), run.events("begin")[0]["settings"]["train"]
        times = steps * run.settings.learn.batch / captions
        seen = f"{times:.0f}" if times >= 9.5 else f"{times:.1f}".removesuffix(".0")
        facts["learned"] = f"{steps} steps in {_rounds(last)}: each of {captions} captions was seen {seen} times on average"
    return facts


def _rounds(count: int) -> str:
    return f"{count} round{'s' * (count != 1)}"


def _next_commands(outcome: Outcome) -> dict[str, list[str]]:
    """What to type next, by what it is for."""
    run, last, commands = outcome.run, len(outcome.rounds), {}
    gentler = shlex.split(to_type("learn.lr", float(f"{run.settings.learn.rate / 3:.2g}")))
    if last:
        which = [] if outcome.best else ["--round", "last"]
        commands["try it"] = ["spinlite", "sample", str(run.folder), *which, "--prompt", "WHAT TO DRAW"]
    if run.state.get("undone"):
        commands["go on"] = ["spinlite", *sys.argv[1:], *gentler]
    elif outcome.stopped:
        commands["again"] = [*_command_without("--name"), "--name", f"{run.name}-gentler", *gentler]
    else:
        commands["go on"] = [*_command_without("--rounds"), "--rounds", str(last + 2)]
    if run.settings.data.folder == "demo" and outcome.best:
        options = ["--data", "MY-PICTURES", "--base", "MODEL.safetensors", "--name", "mine"]
        commands["yours"] = ["spinlite", "train", USUAL, *options]
    return commands


def _command_without(option: str) -> list[str]:
    """The command as it was typed, without an option and its value."""
    typed = sys.argv[1:]
    kept = (
        word for i, word in enumerate(typed)
        if word != option and not word.startswith(f"{option}=") and not (i and typed[i - 1] == option)
    )  # fmt: skip
    return ["spinlite", *kept]
