"""No name of a public class stands for two things."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("segagent_rt", "export", "benchmarks")


def public_classes() -> dict[str, list[str]]:
    """Where each public class is defined, by its name."""
    found = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def main() -> int:
    """Print the names that are taken twice."""
    twice = {name: places for name, places in public_classes().items() if len(places) > 1}
    for name, places in sorted(twice.items()):
        print(f"{name}: {', '.join(places)}")
    return bool(twice)


if __name__ == "__main__":
    sys.exit(main())
