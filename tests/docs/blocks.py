"""The fenced blocks of all pages, and the commands in them."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "pipelines/recipes/runs/README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block. page: below the repository's root."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a block of shell, or of a session after "$ "."""
        text = self.text.replace("\\\n", " ")
        lines = text.splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        found = (shlex.split(line, comments=True) for line in lines)
        return [words for words in found if words]


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = path.read_text()
    page = str(path.relative_to(ROOT))
    found = [
        Block(page, text.count("\n", 0, m.start()) + 1, m[2], textwrap.dedent(m[3]))
        for m in _FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{page}: odd fences"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def kdcache_words(words: list[str]) -> list[str] | None:
    """Return the arguments of the kdcache that a command runs, itself or through another; or None.

    Whoever starts it (torchrun, sbatch, sh -c) passes its last words on.
    """
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] in ("export", "exec")):
        words = words[1:]
    if not words:
        return None
    if words[0] == "kdcache":
        return words[1:]
    if "kdcache" in words:
        return words[words.index("kdcache") + 1 :]
    if words[0] == "sbatch":
        script = next(n for n, word in enumerate(words) if word.endswith("slurm_precompute.sh"))
        return ["precompute", *words[script + 1 :]]
    for word in words[1:]:
        if " kdcache " in f" {word}":
            return kdcache_words(shlex.split(word))
    return None
