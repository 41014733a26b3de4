"""The process of swift.py: OpenStack Swift's four servers, on loopback, in one process.

`python swift_process.py FOLDER` keeps rings, settings and objects in FOLDER, and prints one line of
JSON, {"port": …}, once it answers. It ends by a signal, or with the process that started it. Swift
itself is as it comes: only its way to start, a process for each server, is left out.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

import eventlet
from eventlet import listen, wsgi

eventlet.monkey_patch()

# They must see what was patched.
from swift.common import storage_policy, utils  # noqa: E402
from swift.common.http_protocol import SwiftHttpProtocol  # noqa: E402
from swift.common.ring import RingData  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402

KINDS = ("account", "container", "object", "proxy")
LAYERS = (
    "catch_errors gatekeeper healthcheck listing_formats s3api tempauth copy slo dlo symlink "
    "proxy-server"
)
SETTINGS = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
[pipeline:main]
pipeline = {layers}
[app:{kind}-server]
use = egg:swift#{kind}
account_autocreate = true
"""
S3 = """
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
min_segment_size = 1
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
"""


def configure(folder: Path, ports: dict[str, int], words: tuple[str, str, str]) -> None:
    """Write rings of one device, and the settings; words: account, user and secret."""
    (folder / "devices/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = kd\nswift_hash_path_prefix = kd\n"
        "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
    )
    account, user, secret = words
    for kind, port in ports.items():
        layers = f"{kind}-server"
        settings = SETTINGS
        if kind == "proxy":
            layers = LAYERS
            settings += S3.format(account=account, user=user, secret=secret)
            for name in sorted(set(LAYERS.split()) - {"s3api", "tempauth", "proxy-server"}):
                settings += f"[filter:{name}]\nuse = egg:swift#{name}\n"
        else:
            device = {"id": 0, "zone": 0, "region": 1, "device": "d1", "weight": 1.0, "meta": ""}
            address = {"ip": "127.0.0.1", "port": port}
            ring = RingData([[0]], [device | address], 32)
            ring.save(str(folder / f"{kind}.ring.gz"))
        path = folder / f"{kind}-server.conf"
        path.write_text(settings.replace("{layers}", layers).format(folder=folder, kind=kind))


def main(folder: Path, words: tuple[str, str, str]) -> None:
    """Serve until a signal comes."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    sockets = {kind: listen(("127.0.0.1", 0), backlog=512) for kind in KINDS}
    ports = {kind: server.getsockname()[1] for kind, server in sockets.items()}
    configure(folder, ports, words)
    utils.set_swift_dir(str(folder))
    storage_policy.reload_storage_policies()
    for kind, server in sockets.items():
        app = loadapp(str(folder / f"{kind}-server.conf"), global_conf={"log_name": kind})
        eventlet.spawn(
            wsgi.server,
            server,
            app,
            utils.logs.NullLogger(),
            protocol=SwiftHttpProtocol,
            keepalive=600,
            capitalize_response_headers=False,  # clients of S3 look for ETag
            url_length_limit=65536,
        )
    os.write(1, json.dumps({"port": ports["proxy"]}).encode() + b"\n")
    while True:
        eventlet.sleep(3600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), (sys.argv[2], sys.argv[3], sys.argv[4]))
