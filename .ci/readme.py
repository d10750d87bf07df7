"""Generated parts of the README and of docs/: prints commands, checks or rewrites the rest.

python .ci/readme.py install  the command block marked as the install command; so `test`, `serve`
python .ci/readme.py check    fails if a generated part is stale
python .ci/readme.py write    rewrites the generated parts
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PART = re.compile(r"<!-- generated: (\S+) -->\n.*?<!-- end -->", re.DOTALL)
COMMANDS = {"install": "README.md", "test": "README.md", "serve": "docs/serve.md"}
"""The pages of the blocks that are printed."""

_COMMAND = r"<!-- {} command -->\n```\w*\n(.*?)```"


def help_of(command: str = "") -> str:
    """The help of a command such as `bench/report`, 80 columns wide, without colour or frames."""
    terminal = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "segagent_rt", *command.split("/"), "--help"],
        capture_output=True, text=True, check=True,
        env={**os.environ, **terminal, "TYPER_USE_RICH": "0"},
    )  # fmt: skip
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return f"```\n{text}\n```"


def figures() -> str:
    """The table of measured numbers, each read from the file that it was written to."""
    shipped = json.loads((ROOT / "engines/tiny/mllm/manifest.json").read_text("utf-8"))["verified"]
    photos = json.loads((ROOT / "engines/photo/segmenter/manifest.json").read_text("utf-8"))
    cold = json.loads((ROOT / "benchmarks/results/cold.json").read_text("utf-8"))
    race = json.loads((ROOT / "benchmarks/results/against-reference.json").read_text("utf-8"))
    bundle = json.loads((ROOT / "engines/tiny/bundle.json").read_text("utf-8"))
    scenes, held_out = shipped["scenes"], photos["verified"]["held_out_photos"]
    unrated = bundle["accept_unrated"]
    same, stop = (f"{race['ratios'][name]['median']:.1f}" for name in ("same_clicks", "with_stop"))
    run, machine = cold["run"], cold["machine"]
    rows = [
        ("mIoU after 1 / 3 / 5 clicks of a simulated annotator",
         _after_clicks(held_out["miou_by_click"]), _after_clicks(scenes["oracle_miou_by_click"])),
        ("mIoU from a box", f"{held_out['box_miou']:.2f}", ""),
        ("mIoU from words, if every mask is rated", "",
         f"{scenes['miou']:.2f} ({scenes['clicks_mean']:.1f} clicks, mean)"),
        (f"Looks of the MLLM per object, {unrated['samples']:,} scenes of the calibration", "",
         f"{unrated['looks']:.1f}; {unrated['looks_rated']:.1f} if every mask is rated"),
        ("Speed-up over SegAgent's PyTorch loop", "", f"{same}; {stop} with early stopping"),
        ("`run` in a new process, 512 x 512, median", "",
         f"{run['wall_ms']['p50'] / 1000:.2f} s, {run['peak_megabytes']:.0f} MB of memory"),
    ]  # fmt: skip
    return "\n".join(
        [
            "| | photo segmenter | demo bundle (coloured shapes) |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"Measured on {held_out['targets']} photos and {scenes['scenes']} generated scenes "
            "that were not used in training, on",
            f"{machine['cores']} cores of {machine['processor']} without a GPU. "
            "Sources: the manifests (`segagent-rt inspect tiny --all`,",
            "`inspect photo --all`) and [benchmarks](benchmarks/README.md).",
        ]
    )


def _after_clicks(ious: list[float]) -> str:
    return " / ".join(f"{ious[clicks - 1]:.2f}" for clicks in (1, 3, 5))


def recipes() -> str:
    """The table of recipes: what each is made of, and what it takes."""
    sys.path.insert(0, str(ROOT / "export"))
    from segagent_rt_export.recipe import read_recipe

    lines = [
        "| recipe | part | checkpoint | licence | weights | download | bundle | memory to export |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "engines").glob("*.toml")):
        name = f"`{path.stem}`"
        for part, made_of in read_recipe(path).parts.items():
            facts = made_of.published
            assert facts is not None, f"{path.name} says nothing of its {part}"
            source = made_of.source.split("@")[0]
            fixed = "@" in made_of.source or getattr(made_of, "sha256", "")
            pinned = " (newest)" if made_of.source.startswith(("hf:", "ms:")) and not fixed else ""
            sizes = [_megabytes(n) for n in (facts.download_mb, facts.bundle_mb, facts.memory_mb)]
            fields = [name, part, f"`{source}`{pinned}", facts.licence,
                      f"{facts.parameters_m:,.0f} M", *sizes]  # fmt: skip
            lines.append("| " + " | ".join(fields) + " |")
            name = ""
    return "\n".join(lines)


def boards() -> str:
    """The variants of each recipe's models that fit a board, and what was verified with them."""
    sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / ".ci")]
    from recipe_memory import BOARDS, fitting, verified

    from segagent_rt_export.recipe import read_recipe

    titles = ["recipe", *BOARDS.values(), "segmenter verified", "MLLM verified"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for path in sorted((ROOT / "engines").glob("*.toml")):
        recipe = read_recipe(path)
        cells = [", ".join(fitting(recipe, board)) or "no" for board in BOARDS]
        lines.append(f"| {' | '.join([f'`{path.stem}`', *cells, *verified(recipe)])} |")
    return "\n".join(lines)


def _megabytes(size: float) -> str:
    return f"{size / 1000:.1f} GB" if size >= 1000 else f"{size:.0f} MB"


PARTS: dict[str, Callable[..., str]] = {
    "recipes": recipes, "boards": boards, "help": help_of, "figures": figures,
}  # fmt: skip


def rendered(text: str) -> str:
    """A page with its generated parts made anew."""

    def fresh(match: re.Match[str]) -> str:
        name, _, argument = match[1].partition(":")
        body = PARTS[name](*filter(None, [argument]))
        return f"<!-- generated: {match[1]} -->\n{body}\n<!-- end -->"

    return _PART.sub(fresh, text)


def main(what: str) -> int:
    """Do one of the four."""
    readme = ROOT / "README.md"
    if what in COMMANDS:
        page = (ROOT / COMMANDS[what]).read_text("utf-8")
        found = re.search(_COMMAND.format(what), page, re.DOTALL)
        print(found[1] if found else "false")
        return 0
    stale = 0
    pages = [readme, ROOT / "engines" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        text = page.read_text("utf-8")
        if rendered(text) != text:
            if what == "write":
                page.write_text(rendered(text), "utf-8")
            else:
                print(f"{page.name} is stale: run `python .ci/readme.py write`")
                stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
