"""Files on S3: AWS, or any server that `AWS_ENDPOINT_URL` names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from drivetrain.errors import DataError, DrivetrainError, SystemFault, Unavailable
from drivetrain.tables import TableSpec, s3_endpoint

_CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "INVALID_CLIENT_TOKEN", "403", "401")
_WILD = re.compile(r"[*?\[]")


def filesystem(uri: str) -> pafs.FileSystem:
    """S3 as the standard AWS variables describe it. Raises `DataError` if the endpoint is no URL."""
    for name in _CHECKSUMS:
        # Servers other than AWS do not know the newer checksums, and refuse or damage what carries them.
        os.environ.setdefault(name, "WHEN_REQUIRED")
    endpoint = s3_endpoint()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, object] = {"region": region} if region else {}
    if endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError("AWS_ENDPOINT_URL is no URL", hint="such as http://127.0.0.1:9000", where=uri)
        address = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
        options = {"region": "us-east-1", **options, "endpoint_override": address, "scheme": parts.scheme}
    return pafs.S3FileSystem(
        **options,
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=3),
    )


def find(files: pafs.FileSystem, spec: TableSpec) -> list[str]:
    """The `BUCKET/KEY` of each object that the table's source names, sorted. Raises `DataError` if there is none."""
    pattern = spec.source.removeprefix("s3://")
    wild = _WILD.search(pattern)
    with translated(spec):
        if not wild:
            found = [pattern] if files.get_file_info(pattern).is_file else []
        else:
            base = pattern[: wild.start()].rpartition("/")[0]
            listed = files.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
            matches = re.compile(_as_regex(pattern))
            found = sorted(entry.path for entry in listed if entry.is_file and matches.fullmatch(entry.path))
    if not found:
        raise DataError(
            "no object matches" if wild else "there is no such object",
            hint="see the bucket and key, and that AWS_ENDPOINT_URL names the right server", where=spec.where,
        )  # fmt: skip
    return found


def _as_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a directory, `**/` crosses any number of them."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        parts.get(p) or (p.replace("[!", "[^") if p.startswith("[") and p.endswith("]") else re.escape(p))
        for p in pieces
    )


@contextmanager
def translated(spec: TableSpec) -> Iterator[None]:
    """Turns what the file system raises into our errors, with AWS's name of the fault and nothing else of its text."""
    try:
        yield
    except OSError as error:
        raise fault(error, spec) from error


def fault(error: Exception, spec: TableSpec) -> DrivetrainError:
    """Our error for what the file system raised."""
    found = re.search(r"AWS Error ([A-Z_]+)", str(error))
    name = found[1] if found else type(error).__name__
    if isinstance(error, FileNotFoundError) or name.startswith("NO_SUCH_"):
        return DataError("there is no such bucket or object", where=spec.where)
    if isinstance(error, PermissionError) or any(mark in str(error) for mark in _REFUSED):
        return SystemFault(
            f"access was refused ({name})", where=spec.where,
            hint="see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may read",
        )  # fmt: skip
    return Unavailable(f"the server does not answer ({name})", where=spec.where)
