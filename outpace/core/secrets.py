"""Hiding secrets: those in the environment, and user names and passwords in URLs. Everything that
goes to logs, crash files and run records passes through `redact`.
"""

import json
import os
import re
from collections.abc import Callable
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 8
"""Characters. A shorter value protects nothing, and would match ordinary text."""
_NAME = re.compile(r"(?:TOKEN|KEY|SECRET|CREDENTIAL)S?$|PASSWORD|PASSWD|SECRET", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^\s/]+@")


def redact(text: str) -> str:
    """Replace with `***` the value of each environment variable whose name marks it as secret
    (HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD), also as Python, JSON or a URL would write it,
    and the user part of each URL (before the @)."""
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """`redact` for many texts: reads the environment, which takes most of its time, only once."""
    hidden = [
        form
        for name, value in os.environ.items()
        if len(value) >= SHORTEST and _NAME.search(name)
        for form in {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}
    ]

    def redacted(text: str) -> str:
        for form in hidden:
            text = text.replace(form, HIDDEN)
        return _USER_IN_URL.sub(f"{HIDDEN}@", text)

    return redacted
