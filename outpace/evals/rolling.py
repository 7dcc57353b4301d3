"""Perplexity of a whole text: every token is predicted once, in windows that do not overlap, as
lm-eval's `loglikelihood_rolling` cuts them (`lm_eval/utils.py`, `get_rolling_token_windows`). Bits
a byte do not depend on the tokenizer.
"""

import math
import time
from pathlib import Path

from outpace.core.errors import DataError
from outpace.evals import KeepGoing, LanguageModel, always
from outpace.evals.packing import Request
from outpace.evals.scoring import Hidden, score
from outpace.evals.task import Record
from outpace.runtime.distributed import Group
from outpace.tokenizer import Tokenizer


def windows(ids: list[int], prefix: int, limit: int) -> list[Request]:
    """Requests that together predict each of `ids` once. The first begins with `prefix`, each next
    one with the token before it; the last is filled up with what came before."""
    first = min(limit, len(ids))
    requests = [Request([prefix], [ids[:first]])] if ids else []
    for done in range(first, len(ids), limit):
        end = min(done + limit, len(ids))
        requests.append(Request(ids[end - limit - 1 : done], [ids[done:end]]))
    return requests


def read_text(path: Path) -> str:
    """A UTF-8 file as it is. DataError when it is none, or empty."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise DataError("TEXT", f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            "TEXT", f"{path} is not UTF-8 at byte {error.start:,}", do="convert it first"
        ) from error
    if not text:
        raise DataError("TEXT", f"{path} is empty", do="name a text with --text")
    return text


def evaluate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    precision: str,
    group: Group,
    keep_going: KeepGoing = always,
    hidden: Hidden | None = None,
) -> Record | None:
    """A record of `text`, taken as one document. None if told to stop."""
    started = time.perf_counter()
    ids, n_bytes = tokenizer.encode(text), len(text.encode("utf-8", "surrogatepass"))
    scores = score(
        model,
        windows(ids, tokenizer.end_of_text, model.shape.context),
        precision=precision,
        group=group,
        keep_going=keep_going,
        hidden=hidden,
    )
    if scores is None:
        return None
    nats = -sum(values[0] for values in scores.log_likelihoods)
    return {
        "task": "text",
        "loss": nats / len(ids),
        "perplexity": math.exp(min(nats / len(ids), 700.0)),
        "byte_perplexity": math.exp(min(nats / n_bytes, 700.0)),
        "bits_per_byte": nats / n_bytes / math.log(2),
        "tokens_scored": len(ids),
        "bytes": n_bytes,
        "forward_tokens": scores.forward_tokens,
        "seconds": time.perf_counter() - started,
    }
