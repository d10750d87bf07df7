"""Code budgets: the core stays readable in an afternoon, no file grows beyond one sitting."""

from __future__ import annotations

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_LINES = 400
LOOP_LINES = 45
LIMITS = {
    "core": 2000,  # the modules at the top: loop, search, types, replies, images, results, runtime
    "annotators": 1000,
    "backends": 1300,  # ONNX Runtime, OpenVINO, TensorRT, and the session layer
    "bundle": 1000,
    "engine_cache": 1000,
    "mllm": 1000,
    "segmenters": 1000,
}
APART = {"cli", "html_report", "hub", "eval", "bench", "serve", "scenes", "data", "assets"}
"""Packages that are not needed to understand how a mask is made."""
APART_FILES = {
    "archive.py", "batch.py", "doctor.py", "draw.py", "input_lists.py", "inputs.py", "memory.py",
    "packing.py", "result_formats.py", "results.py", "testing.py", "video.py",
}  # fmt: skip
"""Modules that only read inputs, write results, carry bundles, or describe a machine."""


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    with path.open("rb") as stream:
        tokens = list(tokenize.tokenize(stream.readline))
    skip = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENCODING, tokenize.ENDMARKER,
    }  # fmt: skip
    lines = {n for t in tokens if t.type not in skip for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main() -> int:
    """Print what is over budget."""
    problems = []
    totals = dict.fromkeys(LIMITS, 0)
    for package in ("segagent_rt", "export", "benchmarks", "tests", ".ci"):
        for path in sorted((ROOT / package).rglob("*.py")):
            count = code_lines(path)
            parts = path.relative_to(ROOT).parts
            if package == "segagent_rt" and not (APART & set(parts) or parts[-1] in APART_FILES):
                totals[parts[1] if parts[1] in LIMITS else "core"] += count
            if count > FILE_LINES:
                problems.append(f"{path.relative_to(ROOT)} has {count} code lines of {FILE_LINES}")
    for name, total in totals.items():
        limit = LIMITS[name]
        print(f"{name}: {total} code lines of {limit}")
        if total > limit:
            problems.append(f"{name} is over its budget")
    tree = ast.parse((ROOT / "segagent_rt" / "loop.py").read_text("utf-8"))
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    if lengths["iter_steps"] > LOOP_LINES:
        problems.append(f"the loop has {lengths['iter_steps']} lines of {LOOP_LINES}")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
