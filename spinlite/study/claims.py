"""What others have published, set beside what was found here, as to direction."""

from dataclasses import dataclass

from spinlite.study.results import BASE, Table
from spinlite.study.words import MEASURES, plain


@dataclass(frozen=True)
class Claim:
    """`mine` less `other` in `measure` has this `sign` by what is published; 0: the two are alike.

    A round: none is the arm's last.
    """

    text: str
    published: str
    measure: str
    mine: str
    other: str
    sign: int
    mine_round: int | None = None
    other_round: int | None = None


G = "[2510.18353](https://arxiv.org/abs/2510.18353), HPDv2 and Pick-a-Pic"
LPO = "[2502.01051](https://arxiv.org/abs/2502.01051)"
SEPPO = "SePPO's paper, PickScore"
CLAIMS = (
    Claim("SPIN improves its base", f"PickScore 20.68 → 21.40 ({G})", "kid", "spin", BASE, -1),
    Claim("SPIN follows captions less than its base", f"CLIP .337 → .331 ({G})", "alignment", "spin", BASE, -1),
    Claim("SFT improves its base", f"PickScore 20.68 → 21.24 ({G}; pictures chosen by a scorer)", "kid", "sft", BASE, -1),
    Claim("SFT follows captions less than its base", f"CLIP .337 → .329 ({G})", "alignment", "sft", BASE, -1),
    Claim("SPIN's first round beats SFT", "the SPIN paper's abstract", "kid", "spin", "sft", -1, 1, 1),
    Claim("Moving on beats staying in round 1", "the SPIN paper, figure 5", "kid", "spin", "spin-stay", -1),
    Claim("Each round improves on the one before: 2 on 1", "the SPIN paper", "kid", "spin", "spin", -1, 2, 1),
    Claim("Each round improves on the one before: 3 on 2", "the SPIN paper", "kid", "spin", "spin", -1, 3, 2),
    Claim("SPIN beats DPO", "the SPIN paper; its DPO has human pairs, ours the base's fakes", "kid", "spin", "dpo", -1),
    Claim("SUDO beats SFT", "SUDO's abstract", "kid", "sudo", "sft", -1),
    Claim("SePPO improves its base", f"PickScore 20.56 → 21.25 ({LPO})", "kid", "seppo", BASE, -1),
    Claim("SePPO and SPIN are alike", f"{SEPPO} 21.57 and 21.55", "kid", "seppo", "spin", 0),
    Claim("SePPO without its gate falls below SFT", f"{SEPPO} 20.88, 21.32, reference unknown", "kid", "seppo-none", "sft", 1),
    Claim("Sign and indicator are alike", f"{SEPPO} 21.57 and 21.56", "kid", "seppo", "seppo-indicator", 0),
    Claim("A random reference beats the base", f"{SEPPO} 21.57 and 21.41", "kid", "seppo", "seppo-base", -1),
    Claim("A random reference beats the latest", f"{SEPPO} 21.57 and 21.34", "kid", "seppo", "seppo-previous", -1),
)


def claims_table(table: Table) -> str:
    """Claim, source, what was found, and whether that is the same direction."""
    lines = ["| published | where | here | as to direction |", "|---|---|---|---|"]
    for claim in CLAIMS:
        found, verdict = judged(table, claim)
        lines.append(f"| {claim.text} | {claim.published} | {found} | {verdict} |")
    return "\n".join(lines)


def judged(table: Table, claim: Claim) -> tuple[str, str]:
    """(the difference with its interval, the verdict)."""
    rounds = [
        table.last(name) if round_ is None else round_
        for name, round_ in ((claim.mine, claim.mine_round), (claim.other, claim.other_round))
    ]
    found = table.difference(claim.measure, claim.mine, rounds[0], claim.other, 0 if claim.other == BASE else rounds[1])
    if found is None:
        return "not run", "–"
    finding = f"{MEASURES[claim.measure][0]} {plain(found, claim.measure)}, {found.seeds} seed{'s' * (found.seeds > 1)}"
    if not found.sure:
        return finding, "not told apart"  # which does not prove that two are alike
    return finding, "**does not**" if found.value * claim.sign <= 0 else "reproduces"
