"""Every block of every page is checked here, and is run, too, where RUN says."""

import ast
import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from kdcache.cli.app import app
from kdcache.recipe.schema import parse_recipe
from kdcache.targets.labels import load_labels
from pipelines.site.api import PUBLIC
from tests.docs.blocks import BLOCKS, NOT_RUN, ROOT, Block, kdcache_words

# What runs a page's blocks as they stand, but for NOT_RUN's commands; the README's, by heading.
RUN: dict[str, str | dict[str, str]] = {
    "README.md": {
        "Five minutes with your own photos": "tests/cli/test_tour.py",
        "Sharing": "tests/docs/test_sharing_pages.py",
        "Training": "tests/docs/test_cluster_pages.py",
        "Ready recipes": "tests/pipelines/test_recipes.py",
        "One GPU, eight, or a cluster": "tests/docs/test_cluster_pages.py",
        "In your own loop": "tests/cli/test_tour.py",
        "Looking after caches": "tests/docs/test_pages.py",
    },
    "docs/format.md": "tests/docs/test_pages.py",
    "docs/tour.md": "tests/cli/test_share_page.py",
    "docs/how-to/accelerate.md": "tests/howto/test_loops.py",
    "docs/how-to/buckets.md": "tests/docs/test_sharing_pages.py",
    "docs/how-to/choose-an-encoding.md": "tests/docs/test_pages.py",
    "docs/how-to/debug-a-mismatch.md": "tests/docs/test_pages.py",
    "docs/how-to/export.md": "tests/docs/test_export_page.py",
    "docs/how-to/fabric.md": "tests/howto/test_loops.py",
    "docs/how-to/imagenet.md": "tests/pipelines/test_recipes.py",
    "docs/how-to/keep-a-cache.md": "tests/docs/test_pages.py",
    "docs/how-to/lightning.md": "tests/howto/test_loops.py",
    "docs/how-to/many-gpus.md": "tests/docs/test_cluster_pages.py",
    "docs/how-to/own-data.md": "tests/docs/test_pages.py",
    "docs/how-to/plain-pytorch.md": "tests/howto/test_loops.py",
    "docs/how-to/plan.md": "tests/docs/test_pages.py",
    "docs/how-to/recipes.md": "tests/docs/test_pages.py",
    "docs/how-to/share-a-cache.md": "tests/cli/test_share_page.py",
    "docs/how-to/teachers.md": "tests/cli/test_teacher_page.py",
    "docs/how-to/timm.md": "tests/howto/test_loops.py",
    "docs/how-to/train.md": "tests/docs/test_cluster_pages.py",
    "pipelines/recipes/runs/README.md": "tests/pipelines/test_recipes.py",
}
RUNNING = {"sh", "console", "python"}
OTHERS = {"pip", "ray", "make", "export"}  # commands beside kdcache; make's targets are looked up


def _is_run(block: Block) -> bool:
    if block.language == "python":
        return True
    return not {" ".join(words) for words in block.commands()} <= NOT_RUN.keys()


def _texts(module: Path) -> list[str]:
    """Return the texts that code of a module works with: those that are no docstrings."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    told = [node.value for node in nodes if isinstance(node, ast.Expr)]
    found = [node for node in nodes if isinstance(node, ast.Constant) and node not in told]
    return [node.value for node in found if isinstance(node.value, str)]


def test_a_page_with_code_is_run() -> None:
    with_code = [block for block in BLOCKS if block.language in RUNNING and _is_run(block)]
    assert {block.page for block in with_code} == RUN.keys()
    for block in with_code:
        by, name = RUN[block.page], Path(block.page).stem
        if isinstance(by, dict):
            by, name = by[block.heading], block.heading
        assert any(name in text for text in _texts(ROOT / by)), block


def test_a_command_that_is_not_run_is_there() -> None:
    shell = [block for block in BLOCKS if block.language in ("sh", "console")]
    written = {" ".join(words) for block in shell for words in block.commands()}
    assert NOT_RUN.keys() <= written


def _check_command(words: list[str]) -> None:
    """Check a command's name, options and values; "…" stands for what is left out."""
    arguments = kdcache_words(words)
    if arguments is None:
        assert words[0] in OTHERS, words
        if words[0] == "make":
            makefile = (ROOT / "Makefile").read_text()
            assert f"\n{words[1]}: " in makefile, words
        return
    group: Any = typer.main.get_command(app)
    path = []
    while hasattr(group, "commands"):
        path.append(arguments[0])
        group, arguments = group.commands[arguments[0]], arguments[1:]
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if "…" not in arguments:
        group.make_context(" ".join(path), list(arguments))
        return
    required = [option for parameter in group.params if parameter.required
                for option in _filled(parameter, arguments)]  # fmt: skip
    given = [word for word in arguments if word != "…"]
    group.make_context(" ".join(path), [*given, *required])


def _filled(parameter: Any, arguments: list[str]) -> list[str]:
    """Return words for a required parameter that is left out."""
    if parameter.param_type_name == "argument":
        return [] if any(a for a in arguments if not a.startswith("-") and a != "…") else ["x"]
    return [] if set(parameter.opts) & set(arguments) else [parameter.opts[0], "1"]


def _check_python(block: Block) -> None:
    """Check that code compiles, and that the names it imports of kdcache are there, and public."""
    public = {entry.split()[0].removesuffix("()") for group in PUBLIC.values() for entry in group}
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdcache"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), alias.name
                assert f"{node.module}:{alias.name}" in public


def _check_toml(block: Block, tmp_path: Path) -> None:
    values = tomllib.loads(block.text)
    if "crop" in values:
        parse_recipe(values, source=str(block))
    else:
        path = tmp_path / "labels.toml"
        path.write_text(block.text)
        load_labels(path)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_what_it_says(block: Block, tmp_path: Path) -> None:
    if block.language in ("sh", "console"):
        commands = block.commands()
        assert commands
        for words in commands:
            _check_command(words)
    elif block.language == "python":
        _check_python(block)
    elif block.language == "toml":
        _check_toml(block, tmp_path)
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language in ("text", "{toctree}", "{include} ../README.md")


@pytest.mark.parametrize(
    "line",
    [
        "kdcache inspekt build/cache",
        "kdcache inspect build/cache --jsn",
        "kdcache precompute … --no-such-option 1",
        "kdcache precompute … --workers many",
        "kdcache train --data build/train",
        "torchrun --no-python kdcache train … --prcision bfloat16",
        "sh -c 'exec kdcache precompute … --slise 0/2'",
        "sbatch pipelines/slurm_precompute.sh … --vews 16",
        "make no-such-target",
        "curl example.org",
    ],
)
def test_a_command_that_is_wrong_is_found(line: str) -> None:
    block = Block("page.md", 1, "sh", line)
    with pytest.raises((KeyError, AssertionError, Exception), match=r".") as found:
        _check_command(block.commands()[0])
    assert found.type.__name__ in ("KeyError", "AssertionError", "NoSuchOption", "BadParameter",
                                   "MissingParameter")  # fmt: skip
