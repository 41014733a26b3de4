"""Claims about signatures: whose word counts, and what each doubt is called."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from kdcache.errors import CorruptError, UntrustedError
from kdcache.identity import canonical_json
from kdcache.sharing.keys import TrustedKeys
from kdcache.sharing.trust import MOST_BYTES, MOST_SIGNATURES, check_signature, key_ids, sign
from tests.sharing.signing import (
    CACHE,
    MANIFEST_BYTES,
    Change,
    envelope_of,
    make_signer,
    manifest_bytes,
    statement,
    trusting,
)

WHERE = Path("manifest.sig.json")


@pytest.fixture
def signer(tmp_path: Path) -> CryptoSigner:
    return make_signer(tmp_path, "Vision")


@pytest.fixture
def trusted(tmp_path: Path, signer: CryptoSigner) -> TrustedKeys:
    return trusting(tmp_path, "Vision")


def check(envelope: bytes | None, trusted: TrustedKeys, manifest: bytes = MANIFEST_BYTES) -> str:
    return check_signature(manifest, envelope, trusted, where=WHERE)


def test_what_a_trusted_key_signed_is_told_with_its_name(
    signer: CryptoSigner, trusted: TrustedKeys
) -> None:
    envelope = sign(MANIFEST_BYTES, signer)
    assert check(envelope, trusted) == "Vision"
    assert key_ids(envelope) == (signer.public_key.keyid,)


def test_an_envelope_is_dsse_that_securesystemslib_verifies_and_an_in_toto_statement(
    signer: CryptoSigner,
) -> None:
    envelope = Envelope.from_dict(json.loads(sign(MANIFEST_BYTES, signer)))
    assert envelope.verify([signer.public_key], 1)
    body = json.loads(envelope.payload)
    assert body["_type"] == "https://in-toto.io/Statement/v1"
    assert body["subject"][0]["name"] == f"caches/{CACHE}/manifest.json"
    assert envelope.payload_type == "application/vnd.in-toto+json"


def test_signers_in_any_order_make_the_same_envelope_and_either_is_enough(tmp_path: Path) -> None:
    one, two = (make_signer(tmp_path, name) for name in ("One", "Two"))
    envelope = sign(MANIFEST_BYTES, two, envelope=sign(MANIFEST_BYTES, one))
    assert envelope == sign(MANIFEST_BYTES, one, envelope=sign(MANIFEST_BYTES, two))
    assert envelope == sign(MANIFEST_BYTES, one, envelope=envelope)
    assert check(envelope, trusting(tmp_path, "Two")) == "Two"
    assert check(envelope, trusting(tmp_path, "Two", "One")) == "One, Two"


def test_the_envelope_of_another_manifest_or_of_nothing_is_replaced(
    signer: CryptoSigner, trusted: TrustedKeys
) -> None:
    mine = sign(MANIFEST_BYTES, signer)
    other = sign(manifest_bytes(num_classes=7), CryptoSigner.generate_ed25519())
    for old in (other, b"", b"{}", b"\xff", b"[" * 10**5, b"x" * (MOST_BYTES + 1)):
        assert sign(MANIFEST_BYTES, signer, envelope=old) == mine


def test_an_envelope_full_of_strangers_signatures_is_replaced(signer: CryptoSigner) -> None:
    strangers = [CryptoSigner.generate_ed25519() for _ in range(MOST_SIGNATURES)]
    full = envelope_of(canonical_json(statement()), *strangers)
    assert len(key_ids(full)) == MOST_SIGNATURES
    assert sign(MANIFEST_BYTES, signer, envelope=full) == sign(MANIFEST_BYTES, signer)


def test_what_is_no_manifest_is_not_signed(signer: CryptoSigner) -> None:
    with pytest.raises(CorruptError, match="no manifest"):
        sign(b"{}", signer)


# --- doubts ------------------------------------------------------------------------------------


def test_no_signature_is_told(trusted: TrustedKeys) -> None:
    with pytest.raises(UntrustedError, match=r"manifest\.sig\.json: no signature;"):
        check(None, trusted)


def test_an_unknown_key_is_named_and_the_next_step(trusted: TrustedKeys) -> None:
    stranger = CryptoSigner.generate_ed25519()
    words = rf"key {stranger.public_key.keyid[:16]}, none of the 1 trusted keys in .*keys trust"
    with pytest.raises(UntrustedError, match=words):
        check(sign(MANIFEST_BYTES, stranger), trusted)
    nobody = TrustedKeys(Path("nowhere"), {})
    with pytest.raises(UntrustedError, match="none of the 0 trusted keys in nowhere"):
        check(sign(MANIFEST_BYTES, stranger), nobody)


def test_a_signature_of_another_manifest_is_told(
    signer: CryptoSigner, trusted: TrustedKeys
) -> None:
    other = sign(manifest_bytes(num_classes=7), signer)
    with pytest.raises(UntrustedError, match="signed by Vision, but for another manifest"):
        check(other, trusted)
    with pytest.raises(UntrustedError, match="for another manifest"):
        check(sign(MANIFEST_BYTES, signer), trusted, MANIFEST_BYTES + b" ")


def test_a_signature_that_does_not_verify_is_told(
    signer: CryptoSigner, trusted: TrustedKeys
) -> None:
    payload = canonical_json(statement(manifest_bytes(num_classes=7)))

    def move(body: dict[str, Any]) -> None:
        body["payload"] = base64.b64encode(payload).decode()

    def flip(body: dict[str, Any]) -> None:
        raw = bytearray(base64.b64decode(body["signatures"][0]["sig"]))
        raw[5] ^= 1
        body["signatures"][0]["sig"] = base64.b64encode(raw).decode()

    good = canonical_json(statement())
    for change in (move, flip):
        with pytest.raises(UntrustedError, match=r"signature of Vision \(\w{16}\) does not verify"):
            check(envelope_of(good, signer, change=change), trusted)


def test_a_key_id_is_a_hint(signer: CryptoSigner, trusted: TrustedKeys) -> None:
    """A wrong id hides no valid signature, and the id of a trusted key makes none."""
    good = canonical_json(statement())
    for hint in ("", "0" * 64, "\x1b[31m"):
        envelope = envelope_of(good, signer, change=_hint(hint))
        assert check(envelope, trusted) == "Vision"
    bare = envelope_of(good, signer, change=lambda body: body["signatures"][0].pop("keyid"))
    assert check(bare, trusted) == "Vision"
    stranger = envelope_of(
        good, CryptoSigner.generate_ed25519(), change=_hint(signer.public_key.keyid)
    )
    with pytest.raises(UntrustedError, match="does not verify"):
        check(stranger, trusted)


def _hint(text: Any) -> Change:
    def change(body: dict[str, Any]) -> None:
        body["signatures"][0]["keyid"] = text

    return change


def test_what_a_stranger_says_reaches_no_terminal(trusted: TrustedKeys) -> None:
    stranger = CryptoSigner.generate_ed25519()
    envelope = envelope_of(
        canonical_json(statement()), stranger, change=_hint("\x1b]0;owned\x07" * 9)
    )
    with pytest.raises(UntrustedError) as caught:
        check(envelope, trusted)
    assert str(caught.value).isprintable()
    assert all(text.isprintable() for text in key_ids(envelope))


def test_the_payload_of_an_unknown_key_is_never_read(trusted: TrustedKeys) -> None:
    envelope = envelope_of(b"[" * 10**5, CryptoSigner.generate_ed25519())
    with pytest.raises(UntrustedError, match="none of the 1 trusted keys"):
        check(envelope, trusted)


STATEMENTS: dict[str, Change] = {
    "type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "no subject": lambda s: s.update(subject=[]),
    "two subjects": lambda s: s["subject"].append(s["subject"][0]),
    "subject": lambda s: s.update(subject=[[]]),
    "missing": lambda s: s.pop("subject"),
    "name": lambda s: s["subject"][0].update(name="caches/../manifest.json"),
    "other name": lambda s: s["subject"][0].update(name=f"caches/{'9' * 64}/manifest.json"),
    "no name": lambda s: s["subject"][0].pop("name"),
    "sha512": lambda s: s["subject"][0].update(digest={"sha512": "a" * 128}),
    "sha1 too": lambda s: s["subject"][0]["digest"].update(sha1="a" * 40),
    "no digest": lambda s: s["subject"][0].update(digest={}),
    "short": lambda s: s["subject"][0]["digest"].update(sha256="a"),
    "unicode digits": lambda s: s["subject"][0]["digest"].update(sha256="\u0661" * 64),
    "number": lambda s: s["subject"][0]["digest"].update(sha256=7),
}


@pytest.mark.parametrize("change", STATEMENTS.values(), ids=STATEMENTS)
def test_another_statement_of_a_trusted_key_is_refused(
    signer: CryptoSigner, trusted: TrustedKeys, change: Change
) -> None:
    body = statement()
    change(body)
    with pytest.raises(UntrustedError, match="signed by Vision, but no statement about a manifest"):
        check(envelope_of(canonical_json(body), signer), trusted)


@pytest.mark.parametrize(
    "payload", [b"", b"7", b"\xff", b"[" * 10**5, b'{"_type":1,"_type":1}'], ids=repr
)
def test_other_payloads_of_a_trusted_key_are_refused(
    signer: CryptoSigner, trusted: TrustedKeys, payload: bytes
) -> None:
    with pytest.raises(UntrustedError, match="no statement about a manifest"):
        check(envelope_of(payload, signer), trusted)


def test_a_statement_need_not_be_canonical(signer: CryptoSigner, trusted: TrustedKeys) -> None:
    assert check(envelope_of(json.dumps(statement(), indent=2).encode(), signer), trusted)


ENVELOPES: dict[str, Change] = {
    "payload type": lambda e: e.update(payloadType="application/json"),
    "no payload type": lambda e: e.pop("payloadType"),
    "no payload": lambda e: e.pop("payload"),
    "payload": lambda e: e.update(payload=7),
    "base64": lambda e: e.update(payload="?"),
    "not ASCII": lambda e: e.update(payload="\u0661"),
    "no signatures": lambda e: e.update(signatures=[]),
    "signatures": lambda e: e.update(signatures={}),
    "many signatures": lambda e: e.update(signatures=e["signatures"] * (MOST_SIGNATURES + 1)),
    "the same key id twice": lambda e: e.update(signatures=e["signatures"] * 2),
    "signature": lambda e: e.update(signatures=["x"]),
    "no sig": lambda e: e["signatures"][0].pop("sig"),
    "sig": lambda e: e["signatures"][0].update(sig="!"),
    "short sig": lambda e: e["signatures"][0].update(sig="AAAA"),
    "ECDSA": lambda e: e["signatures"][0].update(sig=base64.b64encode(b"0" * 71).decode()),
    "key id": lambda e: e["signatures"][0].update(keyid=["x"]),
}


@pytest.mark.parametrize("change", ENVELOPES.values(), ids=ENVELOPES)
def test_malformed_envelopes_are_refused(
    signer: CryptoSigner, trusted: TrustedKeys, change: Change
) -> None:
    envelope = envelope_of(canonical_json(statement()), signer, change=change)
    with pytest.raises(UntrustedError, match="no signature of a manifest: ") as caught:
        check(envelope, trusted)
    assert str(caught.value).isprintable()
    assert key_ids(envelope) == ()


MALFORMED = {
    "empty": b"",
    "list": b"[]",
    "text": b'"x"',
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 10**5,
    "deep tables": b'{"a":' * 10**5,
    "large": b" " * (MOST_BYTES + 1),
    "twice": b'{"payload": "", "payload": ""}',
    "huge number": b'{"payload": ' + b"9" * 10**5 + b"}",
    "surrogate": b'{"payload": "\\ud800"}',
}


@pytest.mark.parametrize("envelope", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_envelope_is_refused(trusted: TrustedKeys, envelope: bytes) -> None:
    with pytest.raises(UntrustedError, match="no signature of a manifest: "):
        check(envelope, trusted)


def test_a_public_key_that_any_signature_fits_is_not_what_we_make(
    signer: CryptoSigner, trusted: TrustedKeys
) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", signer.public_key.keyval["public"])
    zeros = envelope_of(
        canonical_json(statement()),
        signer,
        change=lambda e: e["signatures"][0].update(sig=base64.b64encode(bytes(64)).decode()),
    )
    with pytest.raises(UntrustedError, match="does not verify"):
        check(zeros, trusted)
