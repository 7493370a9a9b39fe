"""Which of our errors a store's failure is, and what the user can do about it.

obstore tells most failures apart in its text only, hence the patterns. Of what a server answered, no more than the
status and the error code is repeated: answers have been seen to quote the session token.
"""

from __future__ import annotations

import errno
import os
import re

from drivetrain.errors import SystemFault, Unavailable

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_NO_ANSWER = ("error sending request", "HTTP error", "request or response body", "timed out", "connection closed")
_CREDENTIAL_SOURCES = ("169.254.169.254", "fd00:ec2::254", "169.254.170.", "AssumeRoleWithWebIdentity")
_CREDENTIAL_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
_TLS = ("InvalidCertificate", "InvalidContentType", "certificate verify")

_TRY_AGAIN = "what holds the objects did not answer; try again"
_TRY_SERVER = "check that the S3 server runs and is reached from here (`s3_endpoint` of the target), then try again"
_SIGN_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with an instance profile that may use the bucket"

_LATER = {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET,
    errno.EPIPE, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_OCCUPIED = "something else stands where a file or a directory is wanted: move it away, or use another place"
_NOT_PERMITTED = "this user may not do that there: change the owner or the permissions, or use another place"
_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or store objects elsewhere (`objects` of the target)",
    errno.EDQUOT: "the disk quota is used up: free some space, or store objects elsewhere (`objects` of the target)",
    errno.EFBIG: "the file is larger than this process or file system may write (`ulimit -f`)",
    errno.EROFS: "the file system is read-only: store objects elsewhere (`objects` of the target)",
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.ENOTDIR: _OCCUPIED,
    errno.EEXIST: _OCCUPIED,
    errno.EISDIR: _OCCUPIED,
    errno.ENOTEMPTY: _OCCUPIED,
    errno.EIO: "the disk reports errors: check it before anything else is stored on it",
}


def fault_of(error: Exception, where: str) -> SystemFault:
    """The error to raise for what obstore or the operating system raised while doing `where`."""
    number = _errno(error)
    if number is None:
        return _store_fault(str(error), where)
    message = f"{where} failed: {os.strerror(number)}"
    if number in _LATER:
        return Unavailable(message, hint=_TRY_AGAIN)
    return SystemFault(message, hint=_HINTS.get(number, "check the file system"))


def is_answer(error: Exception) -> bool:
    """Whether a server answered, if only to refuse; the error's text then quotes all that it said."""
    return _STATUS.search(str(error)) is not None


def is_missing_bucket(error: Exception) -> bool:
    """Whether a server's "not found" is about the bucket rather than one object."""
    return "<Code>NoSuchBucket</Code>" in str(error)


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def _store_fault(text: str, where: str) -> SystemFault:
    status, code = _first(_STATUS, text), _first(_CODE, text)
    answer = " ".join(part for part in (status, code) if part)
    if any(source in text for source in _CREDENTIAL_SOURCES):
        return SystemFault(f"{where} failed: no credentials for S3 were found", hint=_SIGN_IN)
    if code == "NoSuchBucket":
        return SystemFault(
            f"{where} failed: there is no such bucket", hint="create the bucket (`objects` of the target)"
        )
    if code == "RequestTimeTooSkewed":
        return SystemFault(f"{where} failed: the S3 server's clock differs from this machine's", hint="set the clock")
    if code in ("XMinioStorageFull", "QuotaExceeded") or status == "507":
        return SystemFault(f"{where} failed: the S3 server is full ({answer})", hint="free some space there")
    if status in ("401", "403") or code in _CREDENTIAL_CODES:
        return SystemFault(f"{where} failed: the S3 server refused the credentials ({answer})", hint=_SIGN_IN)
    if status == "301" or "redirect without LOCATION" in text or code == "AuthorizationHeaderMalformed":
        return SystemFault(f"{where} failed: the bucket is in another region", hint="set AWS_REGION")
    if status in ("408", "429") or status.startswith("5"):
        return Unavailable(f"{where} failed: the S3 server answered {answer}", hint=_TRY_SERVER)
    if status:
        return SystemFault(f"{where} failed: the S3 server answered {answer}", hint="check the bucket and its server")
    if any(sign in text for sign in _TLS):
        return SystemFault(
            f"{where} failed: no trusted TLS connection to the S3 server",
            hint="`s3_endpoint` begins with http:// where the server has no certificate; "
            "a private one is trusted through SSL_CERT_FILE",
        )
    if any(sign in text for sign in _NO_ANSWER):
        return Unavailable(f"{where} failed: the S3 server does not answer", hint=_TRY_SERVER)
    return SystemFault(f"{where} failed: {text.splitlines()[0][:300]}", hint="check what holds the objects")


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
