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
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """A fenced block. page: below the repository's root. heading: of the section it stands in."""

    page: str
    line: int
    language: str
    text: str
    heading: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def lines(self) -> list[str]:
        """Return each command's line of a block of shell, or of a session after "$ "."""
        lines = re.sub(r"\\\n *", "", self.text).splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if words_of(line)]

    def commands(self) -> list[list[str]]:
        """Return the words of each command."""
        return [words_of(line) for line in self.lines()]


def words_of(line: str) -> list[str]:
    """Return the words of a command, without its comment."""
    return shlex.split(line, comments=True)


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = path.read_text()
    page = str(path.relative_to(ROOT))
    found = [
        Block(
            page, text.count("\n", 0, m.start()) + 1, m[2], textwrap.dedent(m[3]),
            (_HEADING.findall(text, 0, m.start()) or [""])[-1],
        )
        for m in _FENCE.finditer(text)
    ]  # fmt: skip
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), f"{page}: odd fences"
    return found


def find_blocks(page: str, *languages: str, heading: str | None = None) -> list[Block]:
    """Return a page's blocks of some languages, or those below a heading; there must be some."""
    found = [
        block
        for block in blocks_of(ROOT / page)
        if block.language in languages and heading in (None, block.heading)
    ]
    assert found, (page, heading)
    return found


# Commands that no test of a page runs, and why.
NOT_RUN = {
    "make demo": "tests/pipelines/test_demo.py runs the same in less time",
    "make test": "runs all this",
    "make ray": "`make test` begins with it",
    "kdcache pack torchvision:CIFAR100 build/cifar --root data": "needs the dataset's own files",
}


def lines_of(page: str, *, heading: str | None = None) -> list[str]:
    """Return the lines of a page's commands to run, or of those below a heading."""
    blocks = find_blocks(page, "sh", "console", heading=heading)
    lines = (line for block in blocks for line in block.lines())
    return [line for line in lines if " ".join(words_of(line)) not in NOT_RUN]


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
