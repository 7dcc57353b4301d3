"""What is never told to anyone: secrets in the environment, and user names and passwords in URLs.
All that goes to logs, crash files and the records of a run passes through `redact`.
"""

import json
import os
import re
from urllib.parse import quote

HIDDEN = "***"
SHORTEST = 8
"""Characters. A shorter value guards nothing, and words of that length occur in ordinary text."""
_NAME = re.compile(r"(?:TOKEN|KEY|SECRET|CREDENTIAL)S?$|PASSWORD|PASSWD|SECRET", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^\s/]+@")


def redact(text: str) -> str:
    """`text` with `***` for the value of each environment variable whose name says that it is
    secret (HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD), also as Python, JSON or a URL would
    write it, and for what comes before the @ of a URL."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _NAME.search(name):
            for form in {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="")}:
                text = text.replace(form, HIDDEN)
    return _USER_IN_URL.sub(f"{HIDDEN}@", text)
