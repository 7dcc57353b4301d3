"""One tokenizer for all threads of a process, loaded on a thread while other things are."""

import contextlib
import threading

from outpace.tokenizer import Tokenizer, get_tokenizer

_loading = threading.Lock()
_loaded: dict[tuple[str, str], Tokenizer] = {}


def shared(name: str, engine: str) -> Tokenizer:
    """The tokenizer of this process, loaded once. Threads may use it at the same time."""
    key = name, engine
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = get_tokenizer(*key)
        return _loaded[key]


def preload(name: str, engine: str) -> None:
    """Begin to load it; who then asks for it waits, or is told why not. The process ends after it:
    Rust that comes back to a Python which is ending aborts."""

    def load() -> None:
        with contextlib.suppress(Exception):  # raised again where the tokenizer is asked for
            shared(name, engine)

    threading.Thread(target=load, name="outpace-tokenizer").start()


def release() -> None:
    """Let go of its word cache, some 240 MB after much text."""
    with _loading:
        _loaded.clear()
