"""One tokenizer for all threads of a process, loaded in the background."""

import contextlib
import threading

from outpace.tokenizer import Tokenizer, get_tokenizer

_loading = threading.Lock()
_loaded: dict[tuple[str, str], Tokenizer] = {}


def shared(name: str, engine: str) -> Tokenizer:
    """This process's tokenizer, loaded once. Threads may use it at the same time."""
    key = name, engine
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = get_tokenizer(*key)
        return _loaded[key]


def preload(name: str, engine: str) -> None:
    """Start loading it on a thread; `shared` then waits for it, or raises its error. Not a daemon
    thread, because Rust code that returns to an exiting Python aborts."""

    def load() -> None:
        with contextlib.suppress(Exception):  # `shared` will raise it again
            shared(name, engine)

    threading.Thread(target=load, name="outpace-tokenizer").start()


def release() -> None:
    """Free its word cache, some 240 MB after much text."""
    with _loading:
        _loaded.clear()
