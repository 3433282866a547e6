"""URLs as they may be shown: without what lets their reader in."""

import re

HIDDEN = "***"
"""What stands in place of a password."""

_PARAMETER = re.compile(r"((?:^|[?&;\s])\w*(?:password|passwd|secret|token|access_key|account_key)\w*=)[^&\s]*", re.I)
_USER_INFO = re.compile(r"(://[^:/\s]*:)\S*@")


def without_password(text: str) -> str:
    """Return a URL, or a text with one in it, with *** in place of every password, secret and key.

    A password that is not percent-encoded may hold what separates the parts of a URL; then rather more is hidden
    than needed.

    Args:
        text: URL, word of a command line, or message.

    Example:
        >>> without_password("s3://AKIA0:s3/cr@t@bucket/run?endpoint_override=host:9000")
        's3://AKIA0:***@bucket/run?endpoint_override=host:9000'
    """
    # Parameters first: a password among them may hold the @ that ends the user's part.
    return _USER_INFO.sub(r"\1***@", _PARAMETER.sub(r"\1***", text))
