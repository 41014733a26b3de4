"""Keys that sign caches: private ones in their owners' files, public ones of who is trusted.

Invariant: a private key is written once, readable by its owner alone, and never shown; a key is
named by the digest of its public part, and who holds it by a name that whoever trusts it chose.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from kdcache.errors import UsageError
from kdcache.files import read_small, sync, write_whole

PASSPHRASE = "KDCACHE_KEY_PASSPHRASE"  # of the environment
PUBLIC = ".pub"
MOST_BYTES = 1 << 16
MOST_KEYS = 1000
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_LINE = re.compile(r"kdcache-ed25519 ([0-9a-f]{64}) (.+)\n?")
_OTHERS = 0o077  # permissions of everybody but the owner
_WRITERS = 0o002


@dataclass(frozen=True)
class PublicKey:
    """A public key and its owner's name. id: the digest of the key, 64 hexadecimal digits."""

    key: SSlibKey
    name: str

    @property
    def id(self) -> str:
        """Return the key id."""
        return str(self.key.keyid)

    def __str__(self) -> str:
        return f"{self.name} ({self.id[:16]})"

    def to_text(self) -> str:
        """Return the line that a .pub file holds."""
        return f"kdcache-ed25519 {self.key.keyval['public']} {self.name}\n"


@dataclass(frozen=True)
class TrustedKeys:
    """The keys that somebody trusts, by key id. source: the folder, or file, that holds them."""

    source: Path
    keys: dict[str, PublicKey]


def public_file(path: Path) -> Path:
    """Return the file of a private key's public part."""
    return path.with_name(path.name + PUBLIC)


# --- private keys ------------------------------------------------------------------------------


def make_key(path: Path, *, name: str) -> str:
    """Return the id of a new key, written to path, its public part to path with .pub at its end.

    name: of its owner, for people. Encrypted where the environment holds KDCACHE_KEY_PASSPHRASE.

    Raises:
        UsageError: a file is there already or cannot be written, or the name is no short text.
    """
    private = Ed25519PrivateKey.generate()
    signer = CryptoSigner(private)
    public = PublicKey(signer.public_key, _checked_name(name, where="--name"))
    beside, phrase = public_file(path), _passphrase()
    lock: KeySerializationEncryption = (
        NoEncryption() if phrase is None else BestAvailableEncryption(phrase)
    )
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.lexists(beside):
            raise FileExistsError
        _write_new(path, text, mode=0o600)
        try:
            _write_new(beside, public.to_text().encode(), mode=0o644)
        except OSError:
            path.unlink()
            raise
        sync(path.parent)
    except FileExistsError:
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent}: is no folder; name another file") from None
        raise UsageError(
            f"{path}: it, or {beside.name}, is there already, and keys are never overwritten; "
            "choose another name"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write a key: {error.strerror}; name another file"
        ) from error
    return public.id


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file that was not there; no link is followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def load_signer(path: Path) -> CryptoSigner:
    """Return what signs with the private key of a file.

    Raises:
        UsageError: it is missing, readable by others, no Ed25519 key, or its passphrase is wrong.
    """
    try:
        mode = path.stat().st_mode
        data = read_small(path, most_bytes=MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{path}: cannot read the key: {reason}; make one with kdcache keys make"
        ) from None
    if data.startswith(b"kdcache-ed25519 "):
        raise UsageError(f"{path}: a public key, which signs nothing; give the private one")
    if mode & _OTHERS:
        raise UsageError(
            f"{path}: others may use this private key (mode {mode & 0o777:03o}, expected 600); "
            f"run chmod 600 on it, and make a new key if others were there"
        )
    phrase = _passphrase() if _ENCRYPTED in data else None
    if _ENCRYPTED in data and phrase is None:
        raise UsageError(f"{path}: the key is encrypted; set {PASSPHRASE} to its passphrase")
    try:
        key = load_pem_private_key(data, phrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose texts may quote the key
        if phrase is not None:
            raise UsageError(f"{path}: {PASSPHRASE} is not the passphrase of this key") from None
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{path}: no private Ed25519 key in PEM (PKCS8), as kdcache keys make, or openssl "
            "genpkey -algorithm ed25519, writes it"
        )
    return CryptoSigner(key)


def _passphrase() -> bytes | None:
    text = os.environ.get(PASSPHRASE, "")
    return os.fsencode(text) if text else None


# --- public keys -------------------------------------------------------------------------------


def load_public(path: Path) -> PublicKey:
    """Return the public key of a .pub file.

    Raises:
        UsageError: it is missing, or holds anything else.
    """
    try:
        text = read_small(path, most_bytes=MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot read a public key: {reason}") from None
    match = _LINE.fullmatch(text)
    if match is None:
        private = "PRIVATE KEY" in text
        raise UsageError(
            f"{path}: {'a private key, which its owner keeps' if private else 'no public key'}; "
            "expected one line, kdcache-ed25519 KEY NAME, as kdcache keys make writes it to .pub"
        )
    return PublicKey(_public(match[1]), _checked_name(match[2], where=str(path)))


def _public(text: str) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(text)))


def load_trusted(path: Path | None = None) -> TrustedKeys:
    """Return the keys of a folder of .pub files, or of one such file.

    path: None takes the user's own folder, which may be missing: nobody is trusted then.

    Raises:
        UsageError: the folder or a file is missing or damaged, or anybody may write it.
    """
    source = trusted_folder() if path is None else path
    if path is None and not source.exists():
        return TrustedKeys(source, {})
    keys: dict[str, PublicKey] = {}
    for file in _files(source):
        found = load_public(file)
        same = [key for key in keys.values() if found.id == key.id or _twins(found, key)]
        if same:
            raise UsageError(
                f"{file}: {found} is in {source} already, as {same[0]}; delete one of the two files"
            )
        keys[found.id] = found
    return TrustedKeys(source, keys)


def _files(source: Path) -> list[Path]:
    """Return the .pub files of a folder, in the order of their names, or the one file."""
    try:
        open_to_all = source.stat().st_mode & _WRITERS
        files = sorted(source.glob(f"[!.]*{PUBLIC}")) if source.is_dir() else [source]
    except OSError as error:
        raise UsageError(f"{source}: no trusted keys: {error.strerror}") from None
    if open_to_all:
        raise UsageError(f"{source}: anybody may add keys there; run chmod o-w on it")
    if len(files) > MOST_KEYS:
        raise UsageError(f"{source}: {len(files)} keys, at most {MOST_KEYS}")
    return files


def trusted_folder() -> Path:
    """Return the user's own folder of trusted keys."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "kdcache" / "trusted"


def trust_key(file: Path, *, name: str | None = None, folder: Path | None = None) -> PublicKey:
    """Return the key of a .pub file, put among the trusted ones.

    name: of its owner; None takes the file's. folder: None takes the user's own.

    Raises:
        UsageError: the file holds no public key, or another key has the name.
    """
    found = load_public(file)
    if name is not None:
        found = PublicKey(found.key, _checked_name(name, where="--name"))
    target = trusted_folder() if folder is None else folder
    known = load_trusted(target).keys if target.exists() else {}
    if found.id in known and known[found.id].name == found.name:
        return found
    for other in known.values():
        if other.id == found.id or _twins(other, found):
            raise UsageError(
                f"{file}: {found}: {other} is trusted already; choose another --name, or run "
                f"kdcache keys distrust {other.id[:16]} first"
            )
    try:
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = target / f"{found.id}{PUBLIC}"
        write_whole(path, lambda partial: partial.write_text(found.to_text(), encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{target}: cannot keep the key: {error.strerror}") from error
    return found


def distrust_key(text: str, *, folder: Path | None = None) -> PublicKey:
    """Return the key that was trusted until now. text: its owner's name, or how its id begins.

    Raises:
        UsageError: no trusted key, or more than one, is meant.
    """
    target = trusted_folder() if folder is None else folder
    keys = load_trusted(folder).keys.values()
    hits = [key for key in keys if key.name == text] or [
        key for key in keys if len(text) >= 8 and key.id.startswith(text)
    ]
    if len(hits) != 1:
        raise UsageError(
            f"{text!a}: names {len(hits)} of the {len(keys)} keys in {target}; give a name, or 8 "
            "or more digits of an id, that kdcache keys list shows"
        )
    try:
        for file in _files(target):
            if load_public(file).id == hits[0].id:
                file.unlink()
    except OSError as error:
        raise UsageError(f"{target}: cannot delete the key: {error.strerror}") from error
    return hits[0]


def _checked_name(name: str, *, where: str) -> str:
    """Return a name as it is told apart from others.

    Raises:
        UsageError: it is empty or long, or holds what a terminal does not print.
    """
    plain = unicodedata.normalize("NFC", name)
    if not 1 <= len(plain) <= 100 or plain != plain.strip() or not plain.isprintable():
        raise UsageError(
            f"{where}: {name[:100]!a}: expected the name of the key's owner, 1 to 100 printable "
            "characters"
        )
    return plain


def _twins(one: PublicKey, other: PublicKey) -> bool:
    """Return whether two names would be taken for each other."""
    first, second = ("".join(_letters(key.name)) for key in (one, other))
    return first == second


def _letters(name: str) -> Iterator[str]:
    for character in unicodedata.normalize("NFKC", name).casefold():
        if not character.isspace():
            yield character
