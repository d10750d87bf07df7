"""Recipes for small checkpoints, and the command line that exports them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `export`")
pytest.importorskip("transformers", reason="needs the extra `export`")

from segagent_rt_export.recipe import Recipe, read_recipe  # noqa: E402
from tests.cli.terminal import Terminal  # noqa: E402
from tests.export.command import checkpoints  # noqa: E402


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: Any) -> Callable[[str], Path]:
    """The folder or file of a small checkpoint of a family, made when first asked for."""
    root, made = tmp_path_factory.mktemp("sources"), dict[str, Path]()

    def source(family: str) -> Path:
        if family not in made:
            made[family] = checkpoints.save(family, root)
        return made[family]

    return source


@pytest.fixture(scope="session")
def recipe_text(sources: Callable[[str], Path]) -> Callable[..., str]:
    """A recipe for families by part; variants are those given."""

    def text(*variants: str, **families: str) -> str:
        names = ", ".join(f'"{name}"' for name in variants)
        return "".join(
            f'[{part}]\nfamily = "{family}"\nsource = "{sources(family)}"\nvariants = [{names}]\n'
            for part, family in families.items()
        )

    return text


@pytest.fixture
def recipe(tmp_path: Path, recipe_text: Callable[..., str]) -> Callable[..., Recipe]:
    """As `recipe_text`, read from a file."""

    def read(*variants: str, **families: str) -> Recipe:
        path = tmp_path / "mine.toml"
        path.write_text(recipe_text(*variants, **families))
        return read_recipe(path)

    return read
