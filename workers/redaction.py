"""Masks what looks like a credential in texts that are published: error messages, reasons and stack traces.

Dead letters are kept for weeks and read by many; what a library says of a failed request may hold a password or a signature.
The texts come from anywhere: each pattern takes time in proportion to the text, whatever it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from streams.user_info import USER_INFO

_MASK: Final = "***"
#: ``USER_INFO`` is made for a URL that stands alone: in a sentence, one ends where a space is.
_URL: Final = re.compile(r"://\S++")
# A name is looked for by its end: `[a-z_-]*` in front of it would be tried anew at each "-" of a long text.
_NAME: Final = r"(?:signature|credential|secret|token|password|passwd|pwd|api[_-]?key|access_?key(?:_?id)?|authorization)"
# As repr and JSON write it, and as they write a text that holds it already: \" ends what \" began, and \\\" does not.
# One that nothing ends (the text was cut) goes to the end of its line. Seven backslashes are three reprs of a repr; no limit
# would let a text of ever more backslashes be searched to its end for each of them.
_QUOTED: Final = (
    r"[bru]{0,2}(?P<depth>\\{0,7}+)(?P<quote>[\"'])"
    r"(?:(?>(?s:(?!(?<!\\)(?P=depth)(?P=quote)).)*+)(?P=depth)(?P=quote)|.*+)"
)
_BARE: Final = r"(?:(?:basic|bearer|aws4-hmac-sha256)\s++)?[^\s,&;\"]++"
_CREDENTIAL: Final = re.compile(rf"(?i)(?P<named>{_NAME}\\*+[\"']?\s*+[=:]\s*+)(?:{_QUOTED}|{_BARE})")
# S3 answers a wrong signature with what it has received.
_XML_ELEMENT: Final = re.compile(r"(<(\w++)>)[^<]*+")
_XML_CREDENTIAL: Final = re.compile(
    r"(?:AccessKeyId|SignatureProvided|Token)\Z|StringToSign|CanonicalRequest"
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with everything masked that looks like a credential, and each of the given secrets. Safe from any thread."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, _MASK)
    text = _URL.sub(lambda url: USER_INFO.sub(f"{_MASK}@", url[0]), text)
    text = _XML_ELEMENT.sub(_xml_masked, text)
    return _CREDENTIAL.sub(rf"\g<named>{_MASK}", text)


def _xml_masked(element: re.Match[str]) -> str:
    return element[1] + _MASK if _XML_CREDENTIAL.search(element[2]) else element[0]
