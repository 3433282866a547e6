"""URLs as they may be shown: without what lets their reader in."""

import re

HIDDEN = "***"
"""What stands in place of a password."""

_NAME = r"\w*(?:password|passwd|secret|token(?!s)|access_key|account_key)\w*|(?:\w+-)*signature|sas|sig|pwd"
_START = rf"((?:^|[?&;\s])(?:{_NAME})=)"
_QUOTED = r"'(?:[^'\\]|\\.)*'"

_URL = re.compile(r"(?:--[\w.-]+=)?[\w+.-]+://(?:(?!://).)*", re.S)
"""A text that is one URL, alone or as the value of an option, or that begins with the only URL in it."""
_URL_PARAMETER = re.compile(rf"{_START}[^&]*", re.I)
_URL_USER_INFO = re.compile(r"(://[^:/]*:).*@", re.S)

_PARAMETER = re.compile(rf"{_START}(?:{_QUOTED}|[^&\s])*", re.I)
_USER_INFO = re.compile(r"(://[^:/\s]*:)(?:\S*@|(?:(?!://)[^@])*@)")
"""Up to the last @ of a word; without one there, up to the next @ of the text, since a password may hold a space."""


def without_password(text: str) -> str:
    """Return a URL, or a text with one in it, with *** in place of every password, secret and key.

    A password that is not percent-encoded may hold spaces and what separates the parts of a URL; then rather more is
    hidden than needed, of a text that begins with a URL above all.

    Args:
        text: URL, word of a command line, or message.

    Example:
        >>> without_password("s3://AKIA0:s3/cr@t@bucket/run?endpoint_override=host:9000")
        's3://AKIA0:***@bucket/run?endpoint_override=host:9000'
    """
    is_url = _URL.fullmatch(text) is not None
    parameter, user_info = (_URL_PARAMETER, _URL_USER_INFO) if is_url else (_PARAMETER, _USER_INFO)
    # Parameters first: a password among them may hold the @ that ends the user's part.
    return user_info.sub(rf"\1{HIDDEN}@", parameter.sub(rf"\1{HIDDEN}", text))
