"""Objects in an S3 bucket: AWS, or any server that speaks the plain object calls of S3."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import urlsplit

from drivetrain.backends.objects import Objects, content
from drivetrain.backends.objects.content import ContentStore, s3_store
from drivetrain.errors import UsageError

_LANES = 4
"""Files on their way at once; each takes up to about 25 MB of memory."""

A = TypeVar("A")
B = TypeVar("B")


def open_s3(url: str, endpoint: str | None = None, region: str | None = None) -> Objects:
    """The objects below `url` (`s3://BUCKET/PREFIX`) of an existing bucket. Nothing is sent before the first verb.

    `endpoint` is the URL of a server other than AWS; its buckets are addressed by path. Credentials are those of the
    AWS environment variables, else of the instance or container. Raises `UsageError` if an address is none.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError("the address of the objects is no bucket", hint="it is written s3://BUCKET/PREFIX")
    if endpoint is not None:
        server = urlsplit(endpoint)
        if server.scheme not in ("http", "https") or not server.hostname or "@" in server.netloc:
            raise UsageError("the S3 endpoint is no URL of a server", hint="it is written https://HOST:PORT")
    prefix = parts.path.strip("/")
    store = s3_store(parts.netloc, prefix, endpoint, region)
    base = f"s3://{parts.netloc}/{prefix}".rstrip("/")
    return ContentStore(store, base, each=_side_by_side)


def versions(source: str, endpoint: str | None = None) -> dict[str, str]:
    """The keys that `source` (`s3://BUCKET/KEY`, globs allowed) may name, with what changes when their contents do.

    A glob gives every key below its last whole directory: asking for too much repeats an ingest, too little would hide a change.
    """
    bucket, _, key = source.removeprefix("s3://").partition("/")
    fixed = re.split(r"[*?\[]", key, maxsplit=1)[0].rpartition("/")[0]
    found = content.versions(s3_store(bucket, "", endpoint, None), fixed, f"s3://{bucket}/{fixed}")
    return found if set(key) & set("*?[") else {name: version for name, version in found.items() if name == key}


def _side_by_side(act: Callable[[A], B], items: Iterable[A]) -> Iterable[B]:
    with ThreadPoolExecutor(_LANES) as pool:
        return list(pool.map(act, items))
