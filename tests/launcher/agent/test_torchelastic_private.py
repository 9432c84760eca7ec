"""Private names of torchelastic that the agent relies on."""

import ast
import inspect
import textwrap

import pytest

pytest.importorskip("torch")

from torch.distributed.elastic.agent.server import local_elastic_agent
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import PContext, start_processes

from launcher.agent.elastic_agent import ElasticAgent
from launcher.agent.rank_context import RankContext
from launcher.agent.torchelastic_private import processes_made_by

NOT_OF_A_CONTEXT = {"start_method", "numa_options"}
"""What the agent passes on beside the arguments of a context."""


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_assign_worker_ranks", ["self", "store", "group_rank", "group_world_size", "spec"]),
        ("_start_workers", ["self", "worker_group"]),
        ("_monitor_workers", ["self", "worker_group"]),
        ("_exit_barrier", ["self"]),
    ],
)
def test_the_agents_overridden_methods_have_the_same_parameters(name, parameters):
    assert list(inspect.signature(getattr(LocalElasticAgent, name)).parameters) == parameters


def test_the_ranks_are_ended_by_a_method_with_a_signal_and_from_some_release_on_a_time():
    parameters = list(inspect.signature(LocalElasticAgent._shutdown).parameters)
    assert parameters in (["self", "death_sig"], ["self", "death_sig", "timeout"])
    assert parameters == list(inspect.signature(ElasticAgent._shutdown).parameters)[: len(parameters)]
    assert "self._shutdown(" in inspect.getsource(LocalElasticAgent._stop_workers)


def test_the_agent_has_the_attributes_that_are_read_and_set():
    source = inspect.getsource(LocalElasticAgent) + inspect.getsource(LocalElasticAgent.__mro__[1])
    for attribute in ("self._remaining_restarts", "self._pcontext", "self._worker_group"):
        assert attribute in source


def test_the_agent_makes_its_processes_by_a_function_of_its_module_called_with_names():
    assert vars(local_elastic_agent)["start_processes"] is start_processes
    tree = ast.parse(textwrap.dedent(inspect.getsource(LocalElasticAgent._start_workers)))
    (call,) = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "start_processes"]
    assert not call.args
    assert {keyword.arg for keyword in call.keywords} - NOT_OF_A_CONTEXT == parameters_of(PContext.__init__) - {"self"}
    assert parameters_of(start_processes) - NOT_OF_A_CONTEXT == parameters_of(PContext.__init__) - {"self"}


def parameters_of(function):
    return set(inspect.signature(function).parameters)


def test_the_abstract_methods_of_a_context_are_those_that_ranks_have():
    assert PContext.__abstractmethods__ == {"_start", "_poll", "_close", "pids"}
    for name in PContext.__abstractmethods__:
        assert parameters_of(getattr(RankContext, name)) == parameters_of(getattr(PContext, name)), name


def test_a_context_has_the_attributes_that_ranks_read():
    source = inspect.getsource(PContext.__init__)
    for attribute in ("envs", "stdouts", "stderrs", "error_files"):
        assert f"self.{attribute} = " in source
    assert '"TORCHELASTIC_SIGNALS_TO_HANDLE"' in inspect.getsource(PContext.start)


class Context:
    """Stands in for the processes of an attempt."""

    def __init__(self, **arguments):
        self.arguments = arguments
        self.is_started = False

    def start(self):
        self.is_started = True


def test_processes_are_made_in_the_agents_way_outside_of_the_block():
    with processes_made_by(Context):
        made = local_elastic_agent.start_processes(name="n", start_method="spawn", numa_options=None)
    assert (made.arguments, made.is_started) == ({"name": "n"}, True)
    assert local_elastic_agent.start_processes is start_processes
    with pytest.raises(ValueError, match="in the block"), processes_made_by(Context):
        raise ValueError("in the block")
    assert local_elastic_agent.start_processes is start_processes
