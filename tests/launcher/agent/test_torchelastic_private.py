"""Private names of torchelastic that the agent relies on."""

import inspect

import pytest


def test_private_names_of_torchelastic_are_unchanged():
    pytest.importorskip("torch")
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, SubprocessContext

    parameters = {
        "_assign_worker_ranks": ["self", "store", "group_rank", "group_world_size", "spec"],
        "_start_workers": ["self", "worker_group"],
        "_stop_workers": ["self", "worker_group"],
        "_monitor_workers": ["self", "worker_group"],
        "_shutdown": ["self", "death_sig", "timeout"],
        "_exit_barrier": ["self"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(LocalElasticAgent, name)).parameters) == expected, name
    source = inspect.getsource(LocalElasticAgent) + inspect.getsource(LocalElasticAgent.__mro__[1])
    for attribute in ("self._remaining_restarts", "self._pcontext", "self._worker_group", "self._shutdown_timeout"):
        assert attribute in source
    assert "self._pc " in inspect.getsource(MultiprocessContext)
    assert "self.subprocess_handlers" in inspect.getsource(SubprocessContext)
