"""A real S3 server: OpenStack Swift's S3 API, on loopback, in a folder of its own.

It starts in about two seconds, in one process (swift_process.py), on free ports. Path-style
addresses, region us-east-1. Bucket names have at least three characters.
"""

import base64
import email.utils
import hashlib
import hmac
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from kdcache.stores.location import Location

ACCOUNT, USER = "KDACCOUNT", "KDUSER"
ACCESS_KEY, SECRET_KEY = f"{ACCOUNT}:{USER}", "KDSECRET+/KDSECRET"
REGION = "us-east-1"
PATIENCE_S = 60


def missing() -> str | None:
    """Return why no Swift can run here."""
    return None if find_spec("swift") else "swift is not installed; `make setup` installs it"


@dataclass(frozen=True)
class Swift:
    """A running server. endpoint: such as http://127.0.0.1:PORT."""

    endpoint: str
    pid: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION

    def create_bucket(self, name: str) -> Location:
        """Create a bucket; return its location."""
        date = email.utils.formatdate(usegmt=True)
        secret, text = self.secret_key.encode(), f"PUT\n\n\n{date}\n/{name}".encode()
        signature = base64.b64encode(hmac.new(secret, text, hashlib.sha1).digest()).decode()
        headers = {"Date": date, "Authorization": f"AWS {self.access_key}:{signature}"}
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            return Location(f"s3://{name}")

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Return the variables with which s3://BUCKET/… reaches this server.

        endpoint: of a proxy before it, such as faults.Proxy.url.
        """
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def running() -> Iterator[Swift]:
    """Start a server; end it and delete what it holds."""
    with tempfile.TemporaryDirectory(prefix="swift-") as folder:
        log = Path(folder) / "log"
        command = [
            sys.executable,
            "-P",
            "-W",
            "ignore",
            Path(__file__).with_name("swift_process.py"),
        ]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, folder, ACCOUNT, USER, SECRET_KEY],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            assert process.stdout is not None
            yield _answering(process.stdout, process.pid, log)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
            process.stdout.close()


def _answering(output: IO[bytes], pid: int, log: Path) -> Swift:
    line = output.readline()
    assert line, log.read_text()
    endpoint = f"http://127.0.0.1:{json.loads(line)['port']}"
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/healthcheck", timeout=PATIENCE_S):
                return Swift(endpoint, pid)
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
