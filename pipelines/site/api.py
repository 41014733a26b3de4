"""The reference of the names that programs may use, from their signatures and docstrings."""

import importlib
import inspect
import math
import re
import textwrap
from typing import Any

# Each name with its module. What stands here keeps its name and meaning, or CHANGELOG.md says so.
# "()" after a class: users make it themselves, so that its arguments are shown. After a name: the
# methods and properties that are meant for programs.
PUBLIC: dict[str, tuple[str, ...]] = {
    "Streams": (
        "kdcache.replay.open:replay_stream",
        "kdcache.replay.stream:StreamOptions()",
        "kdcache.replay.batch:Batch target to parts",
        "kdcache.replay.stream:ReplayStream num_samples view state_dict load_state_dict",
        "kdcache.replay.epochs:EpochStream() state_dict load_state_dict",
        "kdcache.replay.open:fixed_stream",
        "kdcache.replay.open:independent_stream",
        "kdcache.replay.open:fresh_stream",
        "kdcache.replay.open:label_stream",
        "kdcache.replay.targets:join_targets",
    ),
    "Targets and losses": (
        "kdcache.targets.target:SparseTarget dense",
        "kdcache.student.losses:sparse_kl",
        "kdcache.student.losses:label_loss",
    ),
    "Datasets, recipes, teachers": (
        "kdcache.data.document:load_dataset",
        "kdcache.data.classes:check_labels",
        "kdcache.recipe.schema:load_recipe",
        "kdcache.models.teacher:Preprocessing()",
        "kdcache.models.teacher:load_teacher",
    ),
    "Caches": (
        "kdcache.stores.location:parse_place",
        "kdcache.cache.store:open_cache",
        "kdcache.cache.store:Cache read_tile missing totals uids contents read_witness",
        "kdcache.cache.store:Tile",
    ),
    "Catalogues": (
        "kdcache.sharing.catalogue:open_catalogue",
        "kdcache.sharing.catalogue:Catalogue ids published resolve refs",
        "kdcache.sharing.catalogue:Published id place read signature",
        "kdcache.sharing.publish:publish",
        "kdcache.sharing.fetch:prepare_fetch",
        "kdcache.sharing.fetch:run_fetch",
    ),
    "Errors": (
        "kdcache.errors:KdcacheError",
        "kdcache.errors:UsageError",
        "kdcache.errors:MismatchError",
        "kdcache.errors:IncompleteError",
        "kdcache.errors:CorruptError",
        "kdcache.errors:UntrustedError",
        "kdcache.errors:DataError",
    ),
}


def api_reference() -> str:
    """Return Markdown: a section for each group, and in it one for each name."""
    parts = []
    for group, entries in PUBLIC.items():
        parts += [f"## {group}", *map(_entry, entries)]
    return "\n\n".join(parts)


def _entry(entry: str) -> str:
    module, name, *members = entry.replace(":", " ").split()
    value = getattr(importlib.import_module(module), name.removesuffix("()"))
    name, is_made = name.removesuffix("()"), name.endswith("()") or inspect.isfunction(value)
    shown = [f"### {name}", f"`from {module} import {name}`"]
    if is_made:
        shown.append(f"```python\n{name}{_arguments(value)}\n```")
    shown.append(markdown(inspect.getdoc(value) or "", names=_names(value)))
    return "\n\n".join([*shown, *(_member(value, member) for member in members)])


def _member(value: Any, name: str) -> str:
    member = inspect.getattr_static(value, name)
    arguments = ""
    if not isinstance(member, property):
        arguments = _arguments(member, wide=math.inf)
    function = getattr(member, "fget", member)
    text = markdown(inspect.getdoc(function) or "", names=_names(function))
    return f"- **`.{name}{arguments}`**\n\n" + textwrap.indent(text, "  ")


def _arguments(value: Any, wide: float = 72) -> str:
    """Return an argument list; one that would be wider than that has a line an argument."""
    signature = inspect.signature(value)
    signature = signature.replace(
        parameters=[p for p in signature.parameters.values() if p.name != "self"],
        return_annotation=signature.empty
        if inspect.isclass(value)
        else signature.return_annotation,
    )
    shown = _short(str(signature))
    if len(shown) <= wide:
        return shown
    lines: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(_short(str(parameter)))
    returned = _short(str(signature.replace(parameters=[]))).removeprefix("()")
    return "(\n" + "".join(f"    {line},\n" for line in lines) + ")" + returned


def _short(text: str) -> str:
    """Return a signature's text as its source has it: no modules, no quotes of forward names."""
    text = re.sub(r"numpy\.ndarray\[.*?numpy\.dtype\[numpy\.(\w+)\]\]", r"NDArray[\1]", text)
    text = re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", text)
    text = re.sub(r"'([A-Z]\w*)'", r"\1", text)
    return re.sub(r"<function .*? at 0x\w+>", "...", text)


def _names(value: Any) -> tuple[str, ...]:
    if inspect.isclass(value) and issubclass(value, Exception):
        return ()
    return tuple(name for name in inspect.signature(value).parameters if name != "self")


def markdown(docstring: str, *, names: tuple[str, ...]) -> str:
    """Return a docstring of this project as Markdown.

    names: of arguments or fields; where the text says `name: `, an item of a list begins.
    """
    paragraphs = re.split(r"\n\s*\n", docstring.strip())
    return "\n\n".join(_paragraph(paragraph, names) for paragraph in paragraphs)


def _paragraph(text: str, names: tuple[str, ...]) -> str:
    if raises := re.match(r"Raises:\n((?: +.*\n?)+)", text):
        items = re.split(r"\n(?= {4}\S)", raises[1].rstrip())
        return "**Raises**\n\n" + "\n".join(f"- {' '.join(item.split())}" for item in items)
    if re.match(r" {2}", text):  # a drawing
        return f"```text\n{textwrap.dedent(text)}\n```"
    text = " ".join(text.split())
    if not names:
        return text
    name = f"(?:{'|'.join(map(re.escape, names))})"
    first, *rest = re.split(rf"(?:^|(?<=\s))({name}(?:, {name})*): ", text)
    fields = zip(rest[::2], rest[1::2], strict=True)
    listed = "\n".join(f"- `{name}`: {said.strip()}" for name, said in fields)
    return "\n\n".join(filter(None, [first.strip(), listed]))
