"""Process groups created in rounds: on real ranks over gloo, on torch's fake backend, and NCCL's calls on a recorder."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import distributed_c10d as c10d

import mimo_role
from mimo_role import AxisError, GroupOptions, NcclOptions, Topology
from mimo_role.groups import creation, process_groups
from mimo_role.groups.families import DENSE_FAMILIES, FAMILIES, GTP_FAMILIES
from mimo_role.testing import run_ranks
from tests.mimo_role.worlds import topologies

APART = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 3}})
SHORT = timedelta(seconds=90)


def sums_over_all_groups(families):
    """The members and the sum of ranks of every group of every module that this rank runs."""
    context = mimo_role.current()
    found = {}
    for module in context.role.modules:
        for axes in families:
            group = context.group(module, *axes)
            total = torch.tensor(context.rank)
            dist.all_reduce(total, group=group)
            found[module, axes] = dist.get_process_group_ranks(group), int(total)
    return found


def megatron_row(topology, module, axes, rank):
    """The rank's row as Megatron-Core enumerates it; experts are a second grid of the same ranks."""
    from megatron.core.hyper_comm_grid import HyperCommGrid

    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    stages, names = grid.axis_size("pp"), ["expt_tp", "ep", "expt_gtp_remat", "expt_dp", "pp"]
    if set(axes) <= {*grid.dim_names, "gtp_remat"}:
        sizes = dict(zip(grid.dim_names, grid.shape, strict=True))
        names = [axis for axis in ("gtp_remat",) if axis not in sizes] + list(grid.dim_names)
    else:
        sizes = {"expt_dp": grid.size // stages, "pp": stages}
        sizes |= {} if experts is None else dict(zip(experts.dim_names, experts.shape, strict=True))
    enumeration = HyperCommGrid([sizes.get(axis, 1) for axis in names], names, grid.rank_offset).get_rank_enum(list(axes))
    return next(row for row in enumeration if rank in row)


@pytest.mark.ranks
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@given(topologies(max_ranks=16, experts=True).filter(lambda topology: topology.world_size > 1))
@settings(max_examples=15, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_every_group_is_the_row_that_megatron_enumerates_and_works(topology):
    # Expert rows are defined if a stage's ranks are contiguous, so families of experts need pp to be the slowest axis.
    ordered = all(grid.dim_names[-1] == "pp" for grid in topology.grids.values())
    families = list(FAMILIES if ordered else (*DENSE_FAMILIES, *GTP_FAMILIES))
    os.environ["WORLD_SIZE"] = str(topology.world_size)
    try:
        for rank, found in enumerate(run_ranks(sums_over_all_groups, topology, families)):
            for (module, axes), (members, total) in found.items():
                assert members == megatron_row(topology, module, axes, rank)
                assert total == sum(members)
            assert {module for module, _ in found} == set(topology.modules_of(rank))
    finally:
        del os.environ["WORLD_SIZE"]


def make_and_destroy():
    dist.init_process_group("gloo")
    made, freed, destroy = [], [], dist.destroy_process_group
    found = process_groups.ProcessGroups(APART, dist.get_rank(), SHORT)
    for module in APART.modules_of(dist.get_rank()):
        made += [found.get(module, axes) for axes in DENSE_FAMILIES]
    process_groups.dist.destroy_process_group = lambda group: (freed.append(group), destroy(group))
    found.destroy()
    found.destroy()
    return len(freed), len(set(freed)), set(made) <= set(freed)


@pytest.mark.ranks
def test_every_rank_creates_its_groups_and_destroys_them_once():
    alone, of_vision, of_language = 1, 1, 3
    made = [alone + of_vision] * 2 + [alone + of_language] * 6
    assert run_ranks(make_and_destroy, APART.world_size) == [(number, number, True) for number in made]


def two_ranks_make_a_group():
    """torch names it after the number of groups of each of its ranks."""
    if dist.get_rank() in (0, 5):
        group = dist.new_group([0, 5], use_local_synchronization=True, timeout=timedelta(seconds=20))
        total = torch.ones(())
        dist.all_reduce(total, group=group)
        assert total == 2


def make_again_and_again():
    dist.init_process_group("gloo")
    mine = []
    for families in ("default", "megatron", "default", (("dp", "pp"),)):
        options = {"language": GroupOptions(families=families)}
        context = mimo_role.init(APART, timeout_s=30, groups=options)
        module = next(iter(context.role.modules))
        total = torch.ones(())
        dist.all_reduce(total, group=context.group(module, "pp"))
        mine.append(int(total))
        if len(mine) == 2:
            others = dist.get_process_group_ranks(dist.new_group(list(range(8))))  # the world's own names still agree
        if len(mine) == 4:  # from here on they do not: later releases of torch count groups of some ranks too
            two_ranks_make_a_group()
        mimo_role.shutdown()
    two_ranks_make_a_group()
    dist.barrier()  # a rank that ended would break the connections of those that still make the group
    return mine, others


@pytest.mark.ranks
def test_groups_can_be_created_again_in_the_same_world():
    found = run_ranks(make_again_and_again, APART.world_size)
    assert [mine for mine, _ in found] == [[1] * 4] * 2 + [[3] * 4] * 6
    assert [others for _, others in found] == [list(range(8))] * 8


def with_other_groups_before_and_after():
    dist.init_process_group("gloo")
    dist.new_group([0, 2])  # only its members know it: torch's own counters differ from here on
    context = mimo_role.init(APART, timeout_s=30)
    module = next(iter(context.role.modules))
    sums = []
    for row in APART.grids["language"].rows(["pp"]):
        dist.new_group([row[0], row[-1]])
    for _ in range(2):
        total = torch.ones(())
        dist.all_reduce(total, group=context.group(module, "tp", "pp"))
        sums.append(int(total))
        if context.rank == 3:  # after the plain groups, whose names later releases of torch would shift
            dist.destroy_process_group(dist.new_group([3], use_local_synchronization=True))
        grid = mimo_role.HyperCommGrid([4, 2], ["a", "b"])
        total = torch.ones(())
        dist.all_reduce(total, group=grid.create_pg("a"))
        sums.append(int(total))
        if context.rank in (1, 5):
            grid.destroy()
    mine = [context.group(module, "tp", "cp", "dp", "pp"), grid.get_pg("a")] if context.rank == 7 else []
    names = [group.group_name for group in mine]
    dist.barrier()
    return sums, names


@pytest.mark.ranks
def test_groups_that_a_script_creates_and_destroys_do_not_matter():
    found = run_ranks(with_other_groups_before_and_after, APART.world_size)
    assert [sums for sums, _ in found] == [[1, 4, 1, 4]] * 2 + [[6, 4, 6, 4]] * 6
    # torch calls the function that mimo_role/groups/names.py replaces.
    assert found[7][1] == ["mimo_role.0.2.2", "mimo_role.2.0.4"]


def after_the_end():
    context = mimo_role.init(APART, backend="gloo")
    grid = mimo_role.HyperCommGrid([4, 2], ["a", "b"])
    grid.create_pg("a")
    own = context.module_to_grid_map[next(iter(context.role.modules))]
    mimo_role.shutdown()
    grid.destroy()
    messages = []
    for call in (lambda: own.get_pg("tp"), lambda: context.group(next(iter(context.role.modules)), "tp")):
        try:
            call()
        except (mimo_role.ContextError, ValueError) as error:
            messages.append(str(error))
    return messages


@pytest.mark.ranks
def test_after_shutdown_grids_can_be_destroyed_and_groups_are_an_error():
    for messages in run_ranks(after_the_end, APART.world_size):
        assert messages[-1] == "the groups have been destroyed: mimo_role.shutdown() was called"
        assert len(messages) == 2


def options_of_the_groups():
    context = mimo_role.init(
        APART,
        backend="gloo",
        timeout_s=40,
        groups={"language": GroupOptions(families=(("tp", "pp"),), timeout_s=7.5, nccl=NcclOptions(max_ctas=2))},
    )
    contract = mimo_role.RankEnviron.from_environ()
    if not context.role.has_language_module:
        group = context.group("vision", "dp")
        return group.group_desc, group._get_backend(torch.device("cpu")).options._timeout, contract.groups
    group = context.group("language", "tp")
    try:
        context.group("language", "dp", "pp", "tp")
        context.group("language", "cp", "tp", "pp")
        context.megatron_process_groups("language")
    except AxisError as error:
        return group.group_desc, group._get_backend(torch.device("cpu")).options._timeout, contract.groups, str(error)


@pytest.mark.ranks
@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_a_modules_options_reach_its_groups_and_its_environment():
    found = run_ranks(options_of_the_groups, APART.world_size, timeout_s=110)
    options = {"language": GroupOptions(families=(("tp", "pp"),), timeout_s=7.5, nccl=NcclOptions(max_ctas=2))}
    assert found[0] == ("vision.dp", timedelta(seconds=40), options)
    assert found[2] == (
        "language.tp",
        timedelta(seconds=7.5),
        options,
        (
            "module 'language' has no group of its first and last stages; ask for it with "
            "modules.language.groups.families: megatron"
        ),
    )


def group_that_was_not_asked_for():
    context = mimo_role.init(APART, backend="gloo", groups={"language": GroupOptions(families=())})
    try:
        return str(context.group(next(iter(context.role.modules)), "tp", "pp"))
    except AxisError as error:
        return str(error)


@pytest.mark.ranks
def test_a_missing_group_is_an_error_that_names_the_option():
    assert run_ranks(group_that_was_not_asked_for, APART.world_size)[7] == (
        "module 'language' has no group along tp, pp; ask for it with modules.language.groups.families: [[tp, pp]]"
    )


def join_with_unlike_options():
    families = "megatron" if os.environ["RANK"] == "5" else "default"
    try:
        mimo_role.init(APART, backend="gloo", groups={"language": GroupOptions(families=families)})
    except mimo_role.TopologyMismatchError as error:
        return str(error)


@pytest.mark.ranks
def test_ranks_with_other_group_options_are_named():
    for message in run_ranks(join_with_unlike_options, APART.world_size):
        assert "different group options: 7 of 8 hold" in message
        assert "but rank 5 on" in message


def connections_of_new_groups():
    """The number of additional sockets of this rank after its groups are created, and after the first use of one."""
    from pathlib import Path

    def sockets():
        links = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
        return {link for link in links if link.startswith("socket:")}

    dist.init_process_group("gloo")
    dist.barrier()
    dist.barrier()  # once all ranks have ended the first, all connections that it takes are there
    before = sockets()
    made = process_groups.ProcessGroups(APART, dist.get_rank(), SHORT)
    dist.barrier()
    after = sockets()
    dist.barrier()  # others may connect to this rank once they have counted
    module = APART.modules_of(dist.get_rank())[0]
    dist.barrier(group=made.get(module, ("tp", "cp", "dp", "pp")))
    dist.barrier()
    return len(after - before), len(sockets() - after), os.environ.get("TORCH_GLOO_LAZY_INIT")


@pytest.mark.ranks
def test_ranks_of_a_gloo_group_connect_at_first_use_by_default():
    default, at_use, at_once = (
        run_ranks(with_switch, APART.world_size, switch, connections_of_new_groups) for switch in (None, "1", "0")
    )
    for rank in range(2, APART.world_size):
        pairs = sum(len(APART.grids["language"].row_of(rank, axes)) - 1 for axes in ("tp", "pp", ("tp", "pp")))
        for made, used, _ in (default[rank], at_use[rank]):
            assert made < pairs <= at_once[rank][0]
            assert used > 0
        assert at_once[rank][1] == 0
    assert [found[0][2] for found in (default, at_use, at_once)] == [None, "1", "0"]


def with_switch(switch, function):
    if switch is not None:
        os.environ["TORCH_GLOO_LAZY_INIT"] = switch
    return function()


@dataclass(eq=False)
class World:
    bound_device_id: torch.device | None


class RecordingNccl:
    """`torch.distributed` as under NCCL with a bound device; records the groups that are created."""

    ProcessGroup = dist.ProcessGroup

    class ProcessGroupNCCL:
        class Options:
            def __init__(self, is_high_priority_stream=False):
                self.is_high_priority_stream = is_high_priority_stream
                self.config = SimpleNamespace(cga_cluster_size=None, min_ctas=None, max_ctas=None, net_name=None)

    def __init__(self, world_size, bound=True):
        self.calls = []
        self.freed = []
        self.group = SimpleNamespace(WORLD=World(torch.device("cuda", 0) if bound else None))
        self._world_size = world_size

    def get_backend(self):
        return "nccl"

    def get_world_size(self):
        return self._world_size

    def split_group(self, **settings):
        self.calls.append(("split_group", settings))
        return SimpleNamespace(number=len(self.calls))

    def new_group(self, ranks, **settings):
        self.calls.append(("new_group", {"ranks": ranks, "name": c10d._process_group_name(ranks, True)} | settings))
        return SimpleNamespace(number=len(self.calls))

    def destroy_process_group(self, group):
        self.freed.append(group)


def replace_torch(patch, fake):
    patch.setattr(creation, "dist", fake)
    for module in (creation, process_groups):
        patch.setattr(module, "world_group", lambda: fake.group.WORLD)


@pytest.fixture
def recorder(monkeypatch):
    def install(world_size, bound=True):
        fake = RecordingNccl(world_size, bound)
        replace_torch(monkeypatch, fake)
        return fake

    return install


@given(topology=topologies(experts=True), data=st.data())
@settings(max_examples=30)
def test_under_nccl_a_round_is_one_split_the_same_on_every_rank(topology, data):
    with pytest.MonkeyPatch.context() as patch:
        calls = {}
        for rank in data.draw(st.sets(st.integers(0, topology.world_size - 1), min_size=1, max_size=4)):
            fake = RecordingNccl(topology.world_size)
            replace_torch(patch, fake)
            made = process_groups.ProcessGroups(topology, rank, SHORT)
            made.destroy()
            calls[rank] = [settings["split_ranks"] for name, settings in fake.calls if name == "split_group"]
            assert len(calls[rank]) == len(fake.calls) - 1 == len(made.schedule)
        assert len({str(splits) for splits in calls.values()}) == 1
    for rows in next(iter(calls.values())):
        assert rows, "torch refuses a split without a group"
        assert len({member for row in rows for member in row}) == sum(map(len, rows))


def test_nccl_options_names_and_timeouts_reach_the_split(recorder):
    fake = recorder(APART.world_size)
    options = {"language": GroupOptions(timeout_s=9, is_high_priority_stream=True, nccl=NcclOptions(max_ctas=8, net_name="IB"))}
    made = process_groups.ProcessGroups(APART, 3, SHORT, options)
    (_, alone), (_, first), *_ = fake.calls
    assert (first["group_desc"], first["timeout"]) == ("language.tp", timedelta(seconds=9))
    assert first["pg_options"].is_high_priority_stream
    assert vars(first["pg_options"].config) == {"cga_cluster_size": None, "min_ctas": None, "max_ctas": 8, "net_name": "IB"}
    assert first["split_ranks"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert (alone["group_desc"], alone["timeout"], "pg_options" in alone) == ("self", SHORT, False)
    made.destroy()
    assert len(fake.freed) == len({group.number for group in fake.freed}) == len(made.schedule) + 1


def test_a_stage_between_the_ends_has_its_own_rank_as_embedding_group(recorder):
    topology = Topology.from_modules({"language": {"tp": 2, "pp": 3}}, layout="colocated")
    fake = recorder(topology.world_size)
    for rank, ranks in ((0, [0, 4]), (2, [2]), (5, [1, 5])):
        made = process_groups.ProcessGroups(topology, rank, SHORT, {"language": GroupOptions(families="megatron")})
        alone, *splits = fake.calls
        row = next((row for _, settings in splits for row in settings["split_ranks"] if row == ranks), alone[1]["ranks"])
        assert list(row) == ranks
        assert (made.get_ends("language") is made.get("language", ("cp",))) == (len(ranks) == 1)
        made.destroy()
        fake.calls.clear()


def test_under_nccl_the_group_of_one_rank_is_no_split(recorder):
    fake = recorder(APART.world_size)
    process_groups.ProcessGroups(APART, 0, SHORT).destroy()
    (name, alone), *splits = fake.calls
    assert (name, alone["ranks"], alone["use_local_synchronization"]) == ("new_group", [0], True)
    of_rank_0 = [[row for row in settings["split_ranks"] if 0 in row] for _, settings in splits]
    assert of_rank_0 == [[[0, 1]], [], []]


def test_streams_of_high_priority_are_chosen_by_group(recorder):
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "cp": 2, "dp": 2, "pp": 2, "ep": 2}})
    wanted = ("tp", ("cp", "dp"), "expt_dp_ag", "embd", ("pp", "expt_tp", "ep"))
    options = {"language": GroupOptions(families="megatron", high_priority_stream_groups=wanted)}
    fake = recorder(topology.world_size)
    made = process_groups.ProcessGroups(topology, 3, SHORT, options)
    priorities = {settings["group_desc"]: settings["pg_options"] is not None for _, settings in fake.calls[1:]}
    # Rows that are equal have one group: with two stages, pp and embd; with ep 2, tp and ep, and dp_cp and expt_dp.
    high = {"language.tp", "language.expt_dp", "language.expt_dp_ag", "language.pp", "language.tp_pp"}
    assert {name for name, is_high in priorities.items() if is_high} == high
    assert made.get("language", ("dp", "cp")) is made.get("language", ("expt_dp",))
    assert made.get("language", ("dp_cp_ag",)) is not made.get("language", ("dp", "cp"))
    made.destroy()


def test_an_nccl_option_that_this_torch_lacks_is_named(recorder):
    fake = recorder(APART.world_size)
    fake.ProcessGroupNCCL = SimpleNamespace(Options=lambda **_: SimpleNamespace(config=SimpleNamespace()))
    options = {"language": GroupOptions(nccl=NcclOptions(max_ctas=8))}
    for rank in (0, 3):  # one that runs the module, and one that would wait for it in a round
        with pytest.raises(mimo_role.ContextError, match=r"groups.nccl.max_ctas: this torch's NCCL has no such option"):
            process_groups.ProcessGroups(APART, rank, SHORT, options)
    assert not fake.calls


def test_without_a_bound_device_each_rank_creates_only_its_own_rows(recorder):
    fake = recorder(APART.world_size, bound=False)
    process_groups.ProcessGroups(APART, 3, SHORT).destroy()
    assert [(name, settings["ranks"], settings["use_local_synchronization"]) for name, settings in fake.calls] == [
        ("new_group", [3], True),
        ("new_group", [2, 3], True),
        ("new_group", [3, 5, 7], True),
        ("new_group", [2, 3, 4, 5, 6, 7], True),
    ]


def test_a_group_of_some_ranks_does_not_split_the_communicator_of_the_world(recorder):
    fake = recorder(APART.world_size)
    bound_during = []
    fake.new_group = lambda ranks, **settings: bound_during.append((fake.group.WORLD.bound_device_id, ranks, settings))
    fake.get_rank = lambda: 3
    creation.new_group_of([3, 5], timeout=SHORT)
    assert creation.new_group_of([1, 2]) is None
    assert bound_during == [(None, [3, 5], {"use_local_synchronization": True, "timeout": SHORT})]
    assert fake.group.WORLD.bound_device_id == torch.device("cuda", 0)


@given(topology=topologies(experts=True))
@settings(max_examples=30)
def test_the_members_of_a_group_create_it_under_one_name_in_an_order_that_they_share(topology):
    with pytest.MonkeyPatch.context() as patch:
        made = []
        for rank in range(topology.world_size):
            fake = RecordingNccl(topology.world_size, bound=False)
            replace_torch(patch, fake)
            before = len(c10d._world.pg_names)
            groups = process_groups.ProcessGroups(topology, rank, SHORT)
            counted = len(c10d._world.pg_names) - before
            groups.destroy()
            assert len(c10d._world.pg_names) == before
            assert len(fake.calls) + counted == len(groups.schedule) + 1, "torch counts equally many on all ranks"
            made.append([(settings["name"], settings["ranks"]) for _, settings in fake.calls])
    for rank, calls in enumerate(made):
        assert len({name for name, _ in calls}) == len(calls)
        for name, row in calls:
            assert rank in row
            assert all((name, row) in made[other] for other in row)
            shared = [found for found in calls if all(found in made[other] for other in row)]
            assert all([found for found in made[other] if found in shared] == shared for other in row)


def test_each_round_is_logged_with_its_seconds(recorder, caplog):
    recorder(APART.world_size)
    with caplog.at_level(logging.INFO, logger="mimo_role.groups.process_groups"):
        process_groups.ProcessGroups(APART, 0, SHORT).destroy()
    assert [record.getMessage().rpartition(":")[0] for record in caplog.records] == [
        "round 0 (vision.dp)",
        "round 1 (none)",
        "round 2 (none)",
    ]
