"""What tyro says of wrong flags in a box, as the one line of the house."""

import re

from outpace.core.errors import UsageError

ELSEWHERE = {
    "batch_size": "micro_batch_size", "block_size": "context", "eval_interval": "eval_every_steps",
    "hellaswag_limit": "limit", "learning_rate": "lr", "log_interval": "log_every_steps",
    "lr_decay_iters": "max_steps", "max_iters": "max_steps", "out_dir": "run_dir",
    "warmup_iters": "warmup_steps",
}  # fmt: skip
"""What nanoGPT and other commands of ours call a flag -> what it is called here."""
FRAME = re.compile(r"^╭.*╮$|^╰.*╯$|^│ ?| ?│$", re.MULTILINE)
RULE = re.compile(r"^ *[─-]{20,} *$", re.MULTILINE)
"""Between the parts of a box. In ASCII it has no frame, and one under its title."""
MISSING = re.compile(r"^( *)Missing from (.*):")
SWITCHED = re.compile(r"Unrecognized options: (true|false|yes|no|on|off)", re.IGNORECASE)
TYPES = re.compile(
    r"Error parsing (--\w+): no type matching (\S+) could be instantiated from \[(.*)\]\."
)


def one_line(box: str, prog: str, known: set[str]) -> UsageError:
    """The error in a box of tyro's, with a remedy; `known` are the command's flags."""
    parts = RULE.split(FRAME.sub("", box))
    what, *rest = parts if "╭" in box else (*parts[1:], "")
    what = _missing(what) or " ".join(what.partition("Got errors:")[0].split())
    what = TYPES.sub(r"\1 takes \2, not \3", what).rstrip(".")
    near = next((part for part in rest if "you meant" in part), "")
    listed = re.findall(r"^ +(--.*)", near, re.MULTILINE)
    meant = [flag for line in listed for flag in re.findall(r"--\w+", line)]
    meant += [f"--{ELSEWHERE[f]}" for f in re.findall(r"--(\w+)", what) if f in ELSEWHERE]
    meant = [flag for flag in dict.fromkeys(meant) if flag[2:].removeprefix("no_") in known]
    do = f"did you mean {' or '.join(meant)}? See " if meant else ""
    if SWITCHED.fullmatch(what):
        do = "a switch takes no value: it is on as --NAME, off as --no_NAME. See "
    return UsageError("FLAGS", what or "they cannot be read", do=f"{do}{prog} --help")


def _missing(part: str) -> str:
    """What a command lacks, by name alone: the help of each stands further to the right."""
    lines = part.strip("\n").splitlines()
    if not (found := MISSING.match(lines[0])):
        return ""
    indent = len(found[1]) + 4
    names = [x.strip() for x in lines[1:] if len(x) - len(x.lstrip()) == indent]
    return f"{found[2]} needs {' and '.join(names)}"
