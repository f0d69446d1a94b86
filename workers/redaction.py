"""Masks what looks like a credential in texts that are published: error messages and stack traces.

Dead letters are kept for weeks and read by many; what a library says of a failed request may hold a password or a signature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_USER_INFO: Final = re.compile(r"(?<=://)[^/@\s]+@")
_CREDENTIAL: Final = re.compile(
    r"(?i)\b([a-z0-9_-]*(?:signature|credential|secret|token|password|access_?key(?:_?id)?|authorization))"
    r"(\"?\s*[=:]\s*)(?:\"[^\"]*\"|(?:(?:basic|bearer|aws4-hmac-sha256)\s+)?[^\s,&;\"]+)"
)
# S3 answers a wrong signature with what it has received.
_XML_CREDENTIAL: Final = re.compile(
    r"<(\w*(?:AccessKeyId|SignatureProvided|StringToSign\w*|CanonicalRequest\w*|Token))>[^<]*"
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with everything masked that looks like a credential, and each of the given secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = _XML_CREDENTIAL.sub(r"<\1>***", _USER_INFO.sub("***@", text))
    return _CREDENTIAL.sub(r"\1\2***", text)
