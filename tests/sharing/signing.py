"""Manifests, keys and envelopes for the tests of trust."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from kdcache.cache.published import Contribution
from kdcache.identity import cache_id, canonical_json, digest
from kdcache.sharing.keys import TrustedKeys, load_signer, load_trusted, make_key, trust_key
from kdcache.sharing.trust import PAYLOAD, sign

Change = Callable[[dict[str, Any]], object]
TEXT = {"seed": 5, "crop": {"law": "centre", "resize": 8}}
IDS = {"dataset_id": "d" * 64, "recipe_id": digest(TEXT), "teacher_id": "f" * 64}
CACHE = cache_id(**IDS, encoding="topk:2")


def a_manifest(**changes: Any) -> dict[str, Any]:
    """Return a manifest of a cache of two tars and four views in spans of two, as plain values."""
    arrays = ("indices", "values", "tails", "witness")
    names = ["zarr.json", "seal.json", "rows/c/0", *(f"{a}/zarr.json" for a in arrays)]
    names += [f"{a}/zarr.json" for a in ("rows", "uids", "contents")]
    names += [f"{a}/c/{tar}/0" for a in ("uids", "contents") for tar in range(2)]
    for tar in range(2):
        for run in range(2):
            tails = {a: "/0" if a == "witness" else "/0/0" for a in arrays}
            names += [f"{a}/c/{tar}/{run}{tails[a]}" for a in arrays]
            names.append(f"commits/{tar}-{run}.json")
    contribution = Contribution(
        who="Vision team",
        when="2026-01-02T03:04:05Z",
        spans=4,
        device_hours=1.5,
        kdcache="0.1",
        commit=None,
        versions={"torch": "2.11"},
        records=None,
    )
    names.append("contributions/0123456789abcdef.json")
    return {
        "format": 1,
        "cache": CACHE,
        "dataset": {"id": "d" * 64, "num_samples": 20, "num_tars": 2, "name": "photos"},
        "recipe": {"id": IDS["recipe_id"], "name": None, "text": TEXT},
        "teacher": {"id": "f" * 64, "spec": "torchvision:resnet18"},
        "encoding": "topk:2",
        "num_classes": 5,
        "views": 4,
        "span_views": 2,
        "spans": 4,
        "licences": {"data": "CC-BY-4.0", "weights": "MIT", "output": None},
        "contributions": [contribution.model_dump(mode="json")],
        "objects": {name: {"size_bytes": 10, "sha256": "a" * 64} for name in names},
        **changes,
    }


def manifest_bytes(**changes: Any) -> bytes:
    return canonical_json(a_manifest(**changes))


MANIFEST_BYTES = manifest_bytes()


def make_signer(folder: Path, name: str) -> CryptoSigner:
    """Return a new signer; its files are FOLDER/NAME and FOLDER/NAME.pub."""
    make_key(folder / name, name=name)
    return load_signer(folder / name)


def trusting(folder: Path, *names: str) -> TrustedKeys:
    """Return a list of trusted keys, of FOLDER/NAME.pub each."""
    trusted = folder / "trusted"
    trusted.mkdir(exist_ok=True)
    for name in names:
        trust_key(folder / f"{name}.pub", folder=trusted)
    return load_trusted(trusted)


def envelope_of(
    payload: bytes, *signers: CryptoSigner, kind: str = PAYLOAD, change: Change | None = None
) -> bytes:
    """Return an envelope of any payload. change: to its plain values, after it was signed."""
    made = Envelope(payload, kind, {})
    for signer in signers:
        made.sign(signer)
    body = made.to_dict()
    if change is not None:
        change(body)
    return json.dumps(body).encode()


def statement(manifest: bytes = MANIFEST_BYTES) -> dict[str, Any]:
    """Return the statement that our signatures make about a manifest."""
    signed = json.loads(sign(manifest, CryptoSigner.generate_ed25519()))
    body: dict[str, Any] = json.loads(base64.b64decode(signed["payload"]))
    return body


def public_key(signer: CryptoSigner) -> SSlibKey:
    return signer.public_key
