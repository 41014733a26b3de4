"""A local cache published in a catalogue, for whoever needs its targets.

Invariant: objects go before the commit records that name them, these before the manifest, and
nobody sees a cache before its manifest. What was checked is what is sent: a span's objects are
compared with its commit record in memory. A span that is there already with other objects, such as
another GPU's, stays as it is.
"""

import getpass
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import kdcache
from kdcache.cache.copy import load_span
from kdcache.cache.info import read_attributes
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, committed, parse_commit
from kdcache.cache.published import Licences, Manifest
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, IncompleteError, MismatchError, UsageError
from kdcache.sharing.catalogue import Catalogue, Published, cache_name
from kdcache.sharing.draft import (
    ROWS,
    Basis,
    contribute,
    contribution_name,
    described,
    parse_contribution,
)
from kdcache.sharing.licences import licences_given
from kdcache.sharing.names import set_ref, update_index
from kdcache.sharing.refs import utc
from kdcache.sharing.settle import Folder, Settled, describing, found, joined, list_folder, settle
from kdcache.sharing.together import together
from kdcache.sharing.trust import Signer
from kdcache.student.folder import describe_commit

WHO = "KDCACHE_WHO"  # of the environment
