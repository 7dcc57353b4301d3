"""Tokens on their way from the disk to the device: 2 bytes each until they arrive.

One thread reads them into pinned uint16 buffers. They are copied on a separate CUDA stream during
training, and widened on the device to the int64 that the embedding needs. A buffer is reused once
its copy is done.
"""

import torch


class Arrival:
    """Tokens that are being copied to the device."""

    def __init__(self, tokens: torch.Tensor, copied: torch.cuda.Event | None) -> None:
        self._tokens, self._copied = tokens, copied

    def wait(self) -> torch.Tensor:
        """(rows, T + 1) int64, ready for whatever is queued on the current stream from now on."""
        if self._copied is not None:
            current = torch.cuda.current_stream(self._tokens.device)
            current.wait_event(self._copied)
            self._tokens.record_stream(current)
        return self._tokens


class Staging:
    """`number` buffers of (rows, T + 1), used in turn."""

    def __init__(self, device: torch.device, rows: int, width: int, number: int) -> None:
        self.device, on_gpu = device, device.type == "cuda"
        self._buffers = [
            torch.empty(rows, width, dtype=torch.uint16, pin_memory=on_gpu) for _ in range(number)
        ]
        self._copied: list[torch.cuda.Event | None] = [None] * number
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._turn = 0

    def buffer(self) -> torch.Tensor:
        """The next buffer to fill; waits until its previous contents have been copied."""
        if (copied := self._copied[self._turn]) is not None:
            copied.synchronize()
        return self._buffers[self._turn]

    def send(self) -> Arrival:
        """Begin to copy the buffer that was just filled."""
        buffer = self._buffers[self._turn]
        turn, self._turn = self._turn, (self._turn + 1) % len(self._buffers)
        if self._stream is None:
            return Arrival(buffer.long(), None)
        with torch.cuda.stream(self._stream):
            tokens = buffer.to(self.device, non_blocking=True)
            copied = self._copied[turn] = torch.cuda.Event()
            copied.record()
            tokens = tokens.long()
            ready = torch.cuda.Event()
            ready.record()
        return Arrival(tokens, ready)
