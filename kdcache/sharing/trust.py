"""Signatures of manifests: a DSSE envelope of an in-toto statement that names a manifest's sha256.

Invariant: nothing that an envelope says is read before a trusted key's signature over those very
bytes was verified; a key id in it is a hint. One trusted signature is enough, since the list of
trusted keys says whose word counts.

Source: DSSE v1 (secure-systems-lab/dsse), in-toto Statement v1, by way of securesystemslib.
"""

import re
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Signature

from kdcache.cache.published import MANIFEST, manifest_digest, parse_manifest
from kdcache.errors import UntrustedError
from kdcache.identity import canonical_json, read_strict_json
from kdcache.sharing.keys import PublicKey, TrustedKeys
from kdcache.stores.location import Place

MOST_BYTES = 1 << 20
MOST_SIGNATURES = 32
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:kdcache:published-cache:v1"
_SIGNATURE_BYTES = 64
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_SUBJECT = re.compile(r"caches/([0-9a-f]{64})/manifest\.json")
_AGAIN = "ask who published it to sign it again"


def sign(
    manifest: bytes,
    signer: CryptoSigner,
    *,
    envelope: bytes | None = None,
    where: Place = Path(MANIFEST),
) -> bytes:
    """Return the envelope of a manifest with a signature more.

    envelope: of the same manifest, whose signatures are kept; of another one, it is replaced.
    where: of the manifest. The same for every order in which the same keys signed.

    Raises:
        CorruptError, UsageError: the manifest is none.
    """
    payload = _statement(manifest, parse_manifest(manifest, where=where).cache)
    signatures: dict[str, Signature] = {}
    if envelope is not None:
        try:
            found = _parse(envelope)
        except ValueError:
            found = None
        if found is not None and found.payload == payload:
            signatures = dict(found.signatures)
    if len(signatures.keys() - {signer.public_key.keyid}) >= MOST_SIGNATURES:
        signatures = {}
    made = Envelope(payload, PAYLOAD, signatures)
    made.sign(signer)
    made.signatures = dict(sorted(made.signatures.items()))
    return canonical_json(made.to_dict())


def key_ids(envelope: bytes | None) -> tuple[str, ...]:
    """Return which keys an envelope says that it was signed with; nothing is proven by that."""
    try:
        return () if envelope is None else tuple(map(_shown, _parse(envelope).signatures))
    except ValueError:
        return ()


def check_signature(
    manifest: bytes, envelope: bytes | None, trusted: TrustedKeys, *, where: Place
) -> str:
    """Return the names of the trusted keys that signed a manifest, separated by commas.

    where: of the signature.

    Raises:
        UntrustedError: there is no signature, none of a trusted key, or not of this manifest.
    """
    if envelope is None:
        raise UntrustedError(
            f"{where}: no signature; ask who published the cache to run kdcache sign, or read it "
            "without asking for a signature"
        )
    try:
        parsed = _parse(envelope)
    except ValueError as error:
        raise UntrustedError(f"{where}: no signature of a manifest: {error}; {_AGAIN}") from None
    signers = _signers(parsed, trusted)
    if not signers:
        raise UntrustedError(f"{where}: {_doubt(parsed, trusted)}")
    names = ", ".join(str(key.name) for key in signers)
    try:
        signed = _signed_digest(parsed.payload)
    except ValueError as error:
        raise UntrustedError(
            f"{where}: signed by {names}, but no statement about a manifest: {error}; {_AGAIN}"
        ) from None
    found = manifest_digest(manifest)
    if signed != found:
        raise UntrustedError(
            f"{where}: signed by {names}, but for another manifest: sha256 {signed[:16]}…, this "
            f"one's is {found[:16]}…; {_AGAIN}"
        )
    return names


def _statement(manifest: bytes, cache: str) -> bytes:
    """Return the statement about a manifest: the bytes that are signed."""
    subject = {
        "name": f"caches/{cache}/{MANIFEST}",
        "digest": {"sha256": manifest_digest(manifest)},
    }
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [subject],
            "predicateType": PREDICATE,
            "predicate": {"cache": cache},
        }
    )


# --- envelopes ---------------------------------------------------------------------------------


def _parse(data: bytes) -> Envelope:
    """Return an envelope whose payload nobody has looked at.

    Raises:
        ValueError: it is none, or not of the kind that is signed here.
    """
    body = read_strict_json(data, most_bytes=MOST_BYTES)
    if not isinstance(body, dict) or not isinstance(body.get("payload"), str):
        raise ValueError("no DSSE envelope")
    if body.get("payloadType") != PAYLOAD:
        raise ValueError(f"its payload is not of the type {PAYLOAD}")
    entries = body.get("signatures")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_SIGNATURES:
        raise ValueError(f"expected 1 to {MOST_SIGNATURES} signatures")
    plain = [_plain(entry) for entry in entries]
    envelope = Envelope.from_dict({**body, "signatures": plain})
    if any(len(s.signature) != 2 * _SIGNATURE_BYTES for s in envelope.signatures.values()):
        raise ValueError(f"a signature is not of {_SIGNATURE_BYTES} bytes, as Ed25519's are")
    return envelope


def _plain(entry: Any) -> dict[str, str]:
    """Return the fields of a signature that count."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sig"), str):
        raise ValueError("a signature is no table with a sig")
    if not isinstance(entry.get("keyid", ""), str):
        raise ValueError("a key id is no text")
    return {"keyid": entry.get("keyid", ""), "sig": entry["sig"]}


def _signers(envelope: Envelope, trusted: TrustedKeys) -> list[PublicKey]:
    """Return the trusted keys of which a signature verifies, in the order of their names."""
    signed = envelope.pae()
    found: dict[str, PublicKey] = {}
    for signature in envelope.signatures.values():
        hinted = trusted.keys.get(signature.keyid)
        others = (key for key in trusted.keys.values() if key is not hinted)
        for key in (*([] if hinted is None else [hinted]), *others):
            if _verifies(key, signature.signature, signed):
                found[key.id] = key
                break
    return sorted(found.values(), key=lambda key: key.name)


def _verifies(key: PublicKey, signature: str, signed: bytes) -> bool:
    try:
        key.key.verify_signature(Signature(key.id, signature), signed)
    except UnverifiedSignatureError:
        return False
    return True


def _doubt(envelope: Envelope, trusted: TrustedKeys) -> str:
    """Return why nobody's signature is one that is trusted."""
    claimed = [trusted.keys[name] for name in envelope.signatures if name in trusted.keys]
    if claimed:
        return (
            f"the signature of {', '.join(map(str, claimed))} does not verify: it, or what was "
            f"signed, was changed; do not use the cache; {_AGAIN}"
        )
    shown = ", ".join(_shown(name)[:16] for name in list(envelope.signatures)[:4])
    return (
        f"signed with key {shown}, none of the {len(trusted.keys)} trusted keys in "
        f"{trusted.source}; if you know whose it is, get the .pub file from them and run kdcache "
        "keys trust"
    )


def _shown(key_id: str) -> str:
    """Return a key id of anybody's as a terminal may be shown it."""
    return key_id if _KEY_ID.fullmatch(key_id) else ascii(key_id[:64])


def _signed_digest(payload: bytes) -> str:
    """Return the sha256 of the manifest that a verified statement is about.

    Raises:
        ValueError: it is no such statement.
    """
    body = read_strict_json(payload, most_bytes=MOST_BYTES)
    if not isinstance(body, dict) or body.get("_type") != STATEMENT:
        raise ValueError(f"its type is not {STATEMENT}")
    if body.get("predicateType") != PREDICATE:
        raise ValueError(f"its predicate is not {PREDICATE}")
    subjects = body.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise ValueError("expected one subject")
    name, digests = subjects[0].get("name"), subjects[0].get("digest")
    match = _SUBJECT.fullmatch(name) if isinstance(name, str) else None
    if match is None or body.get("predicate") != {"cache": match[1]}:
        raise ValueError("its subject is no manifest of a cache")
    if not isinstance(digests, dict) or digests.keys() != {"sha256"}:
        raise ValueError("expected a sha256, and no other digest")
    digest = digests["sha256"]
    if not isinstance(digest, str) or _KEY_ID.fullmatch(digest) is None:
        raise ValueError("its sha256 is not of 64 hexadecimal digits")
    return digest
