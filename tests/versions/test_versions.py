"""Claims about other machines: other library versions and CPUs make the very same pixels.

Each library of locks/versions/ is put in front of the environment's own, in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "locks" / "versions").glob("*.txt"))
PROOFS = ("tests.pixels.golden", "tests.pixels.golden_ops")
MISSING = "uv is not there: run make setup"

# What switches vector instructions off, by the libraries' own means.
DISPATCHED = np._core._multiarray_umath.__cpu_dispatch__
CPUS = {
    "numpy without AVX": {"NPY_DISABLE_CPU_FEATURES": " ".join(DISPATCHED)},
    "torch with AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch without AVX": {"ATEN_CPU_CAPABILITY": "default"},
    "JPEG with SSE2": {"JSIMD_FORCESSE2": "1"},
    "JPEG without SIMD": {"JSIMD_FORCENONE": "1"},
    "BLAS of an old CPU": {"OPENBLAS_CORETYPE": "Nehalem"},
    "four threads": {"OMP_NUM_THREADS": "4"},
    "JPEG by Pillow": {"KDCACHE_JPEG": "pillow"},
}  # fmt: skip


def _uv() -> str | None:
    own = ROOT / ".uv" / "bin" / "uv"
    return str(own) if own.exists() else shutil.which("uv")


def _prove(proof: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", proof],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def _versions(environment: dict[str, str]) -> dict[str, str]:
    code = "import json, kdcache.pixels.witness as w; print(json.dumps(w.pixel_versions()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(_uv() is None, reason=MISSING)
@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_other_versions_make_the_same_pixels(lock: Path, tmp_path: Path) -> None:
    uv = _uv()
    assert uv is not None
    place = ["--python", sys.executable, "--target", str(tmp_path)]
    subprocess.run(
        [uv, "pip", "install", "--quiet", *place, "--no-deps", "--require-hashes", "-r", lock],
        check=True,
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    library, _, wanted = lock.read_text().split(" ", 1)[0].partition("==")
    assert _versions(environment)[library] == wanted, "the other version is not the one that runs"
    for proof in PROOFS:
        done = _prove(proof, **environment)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", CPUS)
def test_other_cpus_make_the_same_pixels(name: str) -> None:
    for proof in PROOFS:
        done = _prove(proof, **CPUS[name])
        assert done.returncode == 0, done.stderr
        assert "cannot disable" not in done.stderr


def test_one_level_of_one_pixel_makes_a_proof_fail() -> None:
    """The proof can fail, and names the cases."""
    code = (
        "import kdcache.pixels.resize as r, kdcache.pixels.render as e\n"
        "def altered(pixels, size, old=r.RESIZE['torch']):\n"
        "    out = old(pixels, size).copy()\n"
        "    out[0, 0, 0] ^= 1\n"
        "    return out\n"
        "r.RESIZE['torch'] = altered\n"
        "e.check_pixels = lambda resize: None\n"
        "from tests.pixels.golden import differing\n"
        "print(*differing(), sep='; ')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wrong = done.stdout.strip().split("; ")
    assert "preset funmatch" in wrong
    assert "edge rgb420.jpg, torch" in wrong
    assert not any("pillow" in name or name.startswith("decoded") for name in wrong)
