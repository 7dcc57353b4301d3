"""What the process group says when another process is gone, told apart from other errors."""

import pytest
import torch.distributed as dist

from outpace.runtime.distributed import Ranks, lost_peer

TWO = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)


@pytest.mark.parametrize(
    "error",
    [
        dist.DistNetworkError(  # of the store, while the processes still meet
            "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server "
            "shutdown or crash?\nframe #14: c10d::ProcessGroupGloo"
        ),
        RuntimeError("[pair.cc:537] Read error [127.0.0.1]:56497: Connection reset by peer"),
    ],
    ids=["store", "gloo"],
)
def test_a_peer_that_is_gone_is_one_line_and_exit_code_9(error):
    lost = lost_peer(error, TWO)
    assert lost is not None and lost.exit_code == 9 and "\n" not in str(lost)


def test_an_error_of_another_kind_and_a_single_process_have_lost_nobody():
    assert lost_peer(RuntimeError("shape mismatch"), TWO) is None
    assert lost_peer(RuntimeError("Connection reset by peer"), Ranks()) is None


def test_processes_that_cannot_connect_are_told_which_setting_helps():
    error = RuntimeError("Gloo connectFullMesh failed with [pair.cc:152] timed out connecting")
    lost = lost_peer(error, TWO)
    assert lost is not None and "GLOO_SOCKET_IFNAME" in str(lost) and lost.exit_code == 9
