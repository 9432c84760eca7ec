"""The communicators of bridges under NCCL: arithmetic, and what is asked of torch, on a recorder."""

from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings

from mimo_role import GroupOptions, NcclOptions, StageId, Topology
from mimo_role.bridge import nccl_channels
from mimo_role.bridge.buffer_pool import BufferPool
from mimo_role.groups import creation
from mimo_role.resharding.connections import bridge_pairs, links_at, replica_pairs, usual_links
from mimo_role.resharding.message_groups import Traffic, message_groups, rounds_of
from mimo_role.topology.stage_links import StageLink
from tests.mimo_role.worlds import topologies

APART = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 2}})
GPU = torch.device("cuda", 0)


@given(topologies())
@settings(max_examples=100)
def test_ranks_that_send_each_other_messages_are_in_one_row_of_a_group(topology):
    rows = {(group.module, group.to, group.traffic): group for group in message_groups(topology)}
    for rank in {0, topology.world_size // 2, topology.world_size - 1}:
        for link in usual_links(topology):
            names = link.source.module, link.target.module
            within = Traffic.STAGES_FORWARD, Traffic.STAGES_BACK
            traffics = within if link.is_within_module else (Traffic.FORWARD, Traffic.BACK)
            for traffic, back in zip(traffics, (False, True), strict=True):
                for pair in bridge_pairs(topology, [link], rank, back=back):
                    assert set(pair) <= set(rows[(*names, traffic)].row_of(rank) or ()), (link, traffic, pair)
        for module in topology.modules_of(rank):
            for pair in replica_pairs(topology, module, rank):
                assert set(pair) <= set(rows[module, module, Traffic.REPLICAS].row_of(rank) or ()), (module, pair)


@given(topologies())
def test_the_links_of_a_rank_are_those_of_its_stages(topology):
    for rank in {0, topology.world_size // 2, topology.world_size - 1}:
        stages = {(module, topology.grids[module].coords(rank)["pp"]) for module in topology.modules_of(rank)}
        expected = {link for link in usual_links(topology) if stages & set(link)}
        found = links_at(topology, rank)
        assert set(found) == expected
        assert len(found) == len(expected)


@given(topologies())
def test_the_groups_of_a_round_have_no_rank_in_common(topology):
    groups = list(message_groups(topology))
    rounds = rounds_of(groups)
    assert sorted(group.name for round_ in rounds for group in round_) == sorted(group.name for group in groups)
    for round_ in rounds:
        rows = [row for group in round_ for row in group.rows]
        assert len({rank for row in rows for rank in row}) == sum(map(len, rows))
        assert all(len(row) > 1 for row in rows)


@pytest.mark.parametrize(
    ("modules", "layout", "expected"),
    [
        ({"vision": {"dp": 4}, "language": {"dp": 4}}, "non_colocated", {"vision forward": 1, "vision back": 1}),
        ({"vision": {}, "language": {}}, "colocated", {}),
        (
            {"vision": {"tp": 2}, "language": {"tp": 2, "dp": 2, "pp": 2}},
            "non_colocated",
            {"vision forward": 1, "vision back": 1, "language stages forward": 1, "language stages back": 1}
            | {"vision replicas": 1, "language replicas": 4},
        ),
    ],
)
def test_only_communicators_that_are_used_exist(modules, layout, expected):
    topology = Topology.from_modules(modules, layout=layout)
    assert {group.name: len(group.rows) for group in message_groups(topology)} == expected


def test_only_participants_belong_to_a_communicator():
    ranks = {group.name: group.rows for group in message_groups(APART)}
    assert ranks["vision forward"] == ranks["vision back"] == ((0, 1, 2, 3),)
    assert ranks["language stages forward"] == ((2, 3, 4, 5),)
    assert ranks["language replicas"] == ((2, 3), (4, 5))


class Recorder:
    """`torch.distributed` under NCCL; records the groups that are created."""

    ProcessGroupNCCL = SimpleNamespace(
        Options=lambda **_: SimpleNamespace(config=SimpleNamespace(cga_cluster_size=0, min_ctas=0, max_ctas=0, net_name=""))
    )

    def __init__(self, bound):
        self.calls = []
        self.world = SimpleNamespace(bound_device_id=GPU if bound else None)

    def get_backend(self):
        return "nccl"

    def split_group(self, **arguments):
        self.calls.append(arguments)
        return mock.Mock()

    def new_group(self, ranks, **arguments):
        self.calls.append({"ranks": ranks} | arguments)
        return mock.Mock()


def created(rank, *, bound=True, options=None):
    """The groups that a rank creates, by their description."""
    with recording(bound) as recorder:
        nccl_channels.NcclChannels(APART, rank, GPU, timeout=timedelta(seconds=77), options=options)
    return {call["group_desc"]: call for call in recorder.calls}


@contextmanager
def recording(bound=True):
    recorder = Recorder(bound)
    fakes = [(nccl_channels, "_connect"), (nccl_channels, "next_series"), (creation, "CountedGroup")]
    with ExitStack() as patches:
        for module, name in fakes:
            patches.enter_context(mock.patch.object(module, name))
        patches.enter_context(mock.patch.object(creation, "dist", recorder))
        for module in (creation, nccl_channels):
            patches.enter_context(mock.patch.object(module, "world_group", return_value=recorder.world))
            patches.enter_context(mock.patch.object(module, "uses_nccl", return_value=True))
        yield recorder


def test_messages_have_the_timeout_of_the_job_or_of_the_module():
    found = created(0, options={"vision": GroupOptions(timeout_s=5), "language": GroupOptions()})
    assert found["vision forward"]["timeout"] == timedelta(seconds=5)
    assert created(2)["language stages back"]["timeout"] == timedelta(seconds=77)


def test_a_communicator_has_few_cuda_blocks_unless_the_config_sets_them():
    assert created(0)["vision forward"]["pg_options"].config.max_ctas == 8
    options = {"vision": GroupOptions(nccl=NcclOptions(max_ctas=24))}
    assert created(0, options=options)["vision back"]["pg_options"].config.max_ctas == 24
    options = {"vision": GroupOptions(nccl=NcclOptions(min_ctas=12))}
    assert created(0, options=options)["vision back"]["pg_options"].config.max_ctas == 12


def test_in_an_unbound_world_the_members_connect_when_the_group_is_created():
    # torch would connect all of them at the first message, which some never send.
    found = created(1, bound=False)
    assert [(call["ranks"], call["device_id"]) for call in found.values()] == [([0, 1, 2, 3], GPU)] * 2


def test_a_split_names_the_same_ranks_on_all_ranks():
    names = [[str(call["split_ranks"]) for call in created(rank).values()] for rank in (2, 3)]
    assert names[0] == names[1] == ["[[0, 1, 2, 3]]", "[[0, 1, 2, 3]]", "[[2, 3, 4, 5]]", "[[2, 3, 4, 5]]", "[[2, 3], [4, 5]]"]


@pytest.mark.parametrize("rank", [0, 4])
def test_a_bridge_to_a_later_stage_gets_communicators_of_its_own_when_it_is_made(rank):
    link = StageLink(StageId("vision", 0), StageId("language", 1))
    with recording(), mock.patch.object(nccl_channels, "new_group_of") as new_group:
        channels = nccl_channels.NcclChannels(APART, rank, GPU, timeout=timedelta(seconds=77))
        assert new_group.call_count == 0
        found = channels.of(link)
        assert channels.of(link) == found
        connected = nccl_channels._connect.call_args_list[-2:]
    ranks = [call.args[0] for call in new_group.call_args_list]
    assert ranks == [(0, 1, 4, 5)] * 2
    assert [call.kwargs["group_desc"] for call in new_group.call_args_list] == [f"{link} forward", f"{link} back"]
    pairs = {(sender, receiver) for sender in (0, 1) for receiver in (4, 5) if rank in (sender, receiver)}
    assert [call.args[1] for call in connected] == [pairs, {pair[::-1] for pair in pairs}]


def test_a_receive_buffer_on_a_gpu_is_allocated_once():
    allocated = []
    original = torch.empty

    def empty(*shape, **settings):
        allocated.append(shape)
        return original(*shape, **settings)

    with mock.patch.object(torch, "empty", empty):
        found = BufferPool(torch.device("meta")).take((1024, 1024), torch.bfloat16)
    assert (len(allocated), found.shape) == (1, (1024, 1024))
