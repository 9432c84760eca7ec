import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import ActivationSpec, BridgeError, ContextError, RankEnviron, Topology, TopologyMismatchError
from mimo_role.bridge import batch_ledger, departure
from mimo_role.joining import _describe_mismatch
from mimo_role.testing import RankFailedError, run_ranks

pytestmark = pytest.mark.ranks

APART = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 2}})
SHARED = Topology.from_modules({"vision": {"dp": 4}, "language": {"tp": 2, "dp": 2}}, layout="colocated")
ALONE = Topology.from_modules({"language": {}}, layout="colocated")
EXPERTS = Topology.from_modules({"vision": {}, "language": {"tp": 2, "dp": 2, "ep": 4}})


def sums_over_groups():
    """The sum of ranks over every group of every module that this rank runs."""
    context = mimo_role.current()
    found = {}
    for module in context.role.modules:
        for axes in [("tp",), ("dp",), ("pp",), ("cp",), ("tp", "pp"), ("tp", "dp", "pp")]:
            total = torch.tensor(context.rank)
            dist.all_reduce(total, group=context.group(module, *axes))
            found[module, axes] = int(total)
    return found


@pytest.mark.parametrize("topology", [APART, SHARED], ids=["non-colocated", "colocated"])
def test_a_group_is_the_ranks_that_differ_only_along_its_axes(topology):
    for rank, found in enumerate(run_ranks(sums_over_groups, topology)):
        assert found == {
            (module, axes): sum(topology.grids[module].row_of(rank, axes))
            for module in topology.modules_of(rank)
            for axes in [("tp",), ("dp",), ("pp",), ("cp",), ("tp", "pp"), ("tp", "dp", "pp")]
        }


def expert_group_ranks():
    context = mimo_role.current()
    if not context.role.has_language_module:
        return None
    return dist.get_process_group_ranks(context.group("language", "ep"))


def test_expert_axes_have_groups():
    assert run_ranks(expert_group_ranks, EXPERTS) == [None, *[[1, 2, 3, 4]] * 4]


def place_in_the_job():
    context = mimo_role.current()
    return (
        context.role,
        {name: context.coords(name) for name in context.role.modules},
        RankEnviron.from_environ(),
        dict(os.environ),
    )


def name_and_owned_tokens():
    context = mimo_role.current()
    owned = context.owned_tokens("language", 4) if context.role.has_language_module else torch.empty(0)
    return context.name, context.is_logging_rank, context.run_dir, owned.device == context.device, owned.tolist()


def test_one_rank_logs_and_each_has_a_name():
    found = run_ranks(name_and_owned_tokens, Topology.from_modules({"vision": {}, "language": {"cp": 2, "pp": 2}}))
    assert found == [
        ("vision", False, None, True, []),
        ("language.pp0.cp0", False, None, True, [0, 1]),
        ("language.pp0.cp1", False, None, True, [2, 3]),
        ("language.pp1.cp0", True, None, True, [0, 1]),
        ("language.pp1.cp1", False, None, True, [2, 3]),
    ]


def join_in_a_run_directory():
    os.environ.update(RankEnviron(topology=ALONE, rank=0, run_dir="/runs/first").to_environ())
    context = mimo_role.init(backend="gloo")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with context.span("data"):
            torch.ones(1)
        context.span("augment")(torch.ones)(1)
    return context.run_dir, [event.name for event in profiler.events() if event.name in ("data", "augment")]


def test_a_context_has_the_run_directory_and_spans_are_in_traces():
    assert run_ranks(join_in_a_run_directory, 1) == [(Path("/runs/first"), ["data", "augment"])]


def test_a_context_has_its_role_and_coordinates_and_exports_them():
    for rank, (role, coords, found, variables) in enumerate(run_ranks(place_in_the_job, APART)):
        assert role == APART.role_of(rank)
        assert coords == APART.coords_of(rank)
        assert (found.topology, found.rank, found.role) == (APART, rank, role)
        assert variables["MIMO_HAS_LANGUAGE_MODULE"] == ("1" if role.has_language_module else "0")


def lanes_and_token_count():
    context = mimo_role.current()
    (module,) = context.role.modules
    count = int(context.token_count(context.rank)) if module == "language" else None
    return context.lane(module), count


def test_lanes_lie_along_gtp_remat_and_dp():
    world = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "gtp_remat": 2, "dp": 2}})
    found = run_ranks(lanes_and_token_count, world)
    assert [lane for lane, _ in found] == [(0, 2), (1, 2), *((lane, 4) for lane in range(4) for _ in range(2))]
    assert [count for _, count in found[2:]] == [2 + 4 + 6 + 8, 3 + 5 + 7 + 9] * 4


def mesh_of_language():
    context = mimo_role.current()
    if not context.role.has_language_module:
        return None
    mesh = context.mesh("language")
    groups_made = dist.get_pg_count()
    again = context.mesh("language")
    sliced = mesh["tp"]
    total = torch.tensor(context.rank)
    dist.all_reduce(total, group=sliced.get_group())
    same = mesh.get_group("pp") is context.group("language", "pp")
    return mesh.mesh_dim_names, mesh.mesh.tolist(), int(total), same, again is mesh and dist.get_pg_count() == groups_made


def test_a_mesh_uses_existing_groups():
    found = run_ranks(mesh_of_language, APART)
    assert found[:2] == [None, None]
    for rank, (names, ranks, total, same, nothing_new) in enumerate(found[2:], start=2):
        assert names == ("pp", "dp", "cp", "tp")
        assert ranks == [[[[2, 3]]], [[[4, 5]]]]
        assert total == sum(APART.grids["language"].row_of(rank, "tp"))
        assert same
        assert nothing_new


def error_of(call):
    try:
        call()
    except mimo_role.MimoError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def own_groups():
    context = mimo_role.current()
    sums = []
    for ranks in ([context.rank], [4, 1], [1, 4], [0, 1, 2, 3, 4]):
        if context.rank in ranks:  # the others do not call it
            total = torch.ones(())
            dist.all_reduce(total, group=context.new_group(ranks))
            sums.append(int(total))
    assert context.new_group([5 - context.rank]) is None
    everyone = dist.new_group(list(range(6)))
    dist.barrier(group=everyone)
    return sums


def test_some_ranks_create_a_group_by_a_call_of_their_own():
    assert run_ranks(own_groups, APART) == [[1, 5], [1, 2, 2, 5], [1, 5], [1, 5], [1, 2, 2, 5], [1]]


def mistakes():
    context = mimo_role.current()
    return [
        error_of(mimo_role.init),
        error_of(lambda: context.coords("audio")),
        error_of(lambda: context.group("language", "tp")),
        error_of(lambda: context.group("vision", "sp")),
        error_of(lambda: context.group("vision", "tp", "tp")),
        error_of(lambda: context.group("vision", ["dp", "cp"])),
        error_of(lambda: context.bridge("language")),
        error_of(lambda: context.bridge("language", stage=1)),
        error_of(lambda: context.bridge("audio")),
    ]


def test_each_mistake_has_its_message():
    assert run_ranks(mistakes, APART)[0] == [
        (
            "ContextError: this process has its context already; use mimo_role.current(). mimo-launch joins before the script "
            "starts, unless the config says runtime.join: script"
        ),
        "AxisError: no module 'audio'; there are vision, language",
        "AxisError: rank 0 does not run 'language'; it runs vision",
        "AxisError: module 'vision' has no grid with the axes sp; it has tp, cp, dp, pp; or expt_tp, ep, expt_dp, pp",
        "AxisError: duplicate axis: tp, tp",
        "AxisError: axes are names, one argument each, not ['dp', 'cp']",
        (
            "BridgeError: no bridge begins at the last stage of 'language', whose output no module takes; name another module "
            "(modules.NAME.after has what NAME takes), or a stage"
        ),
        "BridgeError: module 'language' has 2 stages; no stage follows stage 1",
        "AxisError: no module 'audio'; there are vision, language",
    ]


def test_current_before_init_names_init(monkeypatch):
    monkeypatch.delenv("MIMO_TOPOLOGY", raising=False)
    with pytest.raises(ContextError, match=r"start the script with mimo-launch .*, or call mimo_role.init"):
        mimo_role.current()
    with pytest.raises(ContextError, match="no topology: pass one"):
        mimo_role.init()
    mimo_role.shutdown()


def test_a_world_of_several_ranks_needs_a_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ContextError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set: a world of 6 ranks"):
        mimo_role.init(APART, backend="gloo")


def alone():
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    context = mimo_role.init(Topology.from_modules({"vision": {}, "language": {}}, layout="colocated"), backend="gloo")
    first = context.role.has_language_module, context.role.has_modality_modules, context.group("language", "tp").size()
    mimo_role.shutdown()
    mimo_role.init(Topology.from_modules({"language": {}}, layout="colocated"), backend="gloo")
    return first, mimo_role.current().topology.grids.keys() == {"language"}


def test_a_world_of_one_needs_no_launcher_and_can_be_joined_again():
    assert run_ranks(alone, 1) == [((True, True, 1), True)]


def join_with_own_process_group():
    dist.init_process_group("gloo")
    context = mimo_role.init(APART)
    mimo_role.shutdown()
    total = torch.tensor(1)
    dist.all_reduce(total)
    return context.rank, int(total)


def test_an_existing_process_group_is_used_and_not_destroyed():
    assert run_ranks(join_with_own_process_group, 6) == [(rank, 6) for rank in range(6)]


def join_from_torchrun_environment():
    return mimo_role.init(APART, backend="gloo").role


def test_a_script_can_join_with_a_topology():
    assert run_ranks(join_from_torchrun_environment, 6) == [APART.role_of(rank) for rank in range(6)]


def join_with_one_odd_rank():
    other = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 4}})
    odd = os.environ["RANK"] == "3"
    return error_of(lambda: mimo_role.init(other if odd else APART, backend="gloo")), dist.is_initialized()


def test_every_rank_names_ranks_with_another_topology_and_their_hosts():
    for message, joined in run_ranks(join_with_one_odd_rank, 6):
        assert message.startswith(f"TopologyMismatchError: ranks hold different topologies: 5 of 6 hold {APART.digest[:12]}")
        assert f"but rank 3 on {socket.gethostname()} holds" in message
        assert not joined


def join_a_world_of_another_size():
    return error_of(lambda: mimo_role.init(APART, backend="gloo"))


def test_a_world_of_another_size_is_refused():
    assert run_ranks(join_a_world_of_another_size, 2) == ["ContextError: the job has 2 ranks, but the topology has 6"] * 2


def join_from_outside():
    os.environ["RANK"] = "6"
    return error_of(lambda: mimo_role.init(APART, backend="gloo"))


def test_a_rank_outside_the_world_is_refused():
    assert run_ranks(join_from_outside, 1) == ["ContextError: RANK=6 is outside WORLD_SIZE=1"]


def join_against_the_plan():
    os.environ.update(RankEnviron(topology=APART, rank=0).to_environ())
    return error_of(lambda: mimo_role.init(SHARED, backend="gloo"))


def test_a_topology_other_than_the_planned_one_is_refused():
    assert "is not the one that mimo-launch planned" in run_ranks(join_against_the_plan, 1)[0]


def test_of_many_deviating_ranks_the_first_are_named():
    everyone = [("a" * 64, "n1")] * 40 + [("b" * 64, "n2")] * 20
    assert "and 4 more. Start all of them from the same config" in _describe_mismatch("topologies", everyone)
    assert issubclass(TopologyMismatchError, ContextError)


def fail_on_rank_one():
    if os.environ["RANK"] == "1":
        raise ValueError("rank one's own error")


def die_on_rank_one():
    if os.environ["RANK"] == "1":
        os._exit(3)


def never_end():
    while True:
        torch.zeros(1)


@pytest.mark.parametrize(
    ("function", "timeout_s", "message"),
    [
        (fail_on_rank_one, 60, r"rank 1 failed:\n(.|\n)*rank one's own error"),
        (die_on_rank_one, 60, "rank 1 exited without reporting an error"),
        (never_end, 3, "not finished after 3 s: ranks 0, 1"),
    ],
)
def test_run_ranks_names_the_rank_that_failed_and_its_error(function, timeout_s, message):
    with pytest.raises(RankFailedError, match=message):
        run_ranks(function, 2, timeout_s=timeout_s)


def _cross(ctx, number, width=2):
    bridge = ctx.bridge("vision")
    sent = torch.full((1, width), number, dtype=torch.float64) if bridge.is_sender else None
    with torch.no_grad():
        received = bridge(sent, spec=ActivationSpec.of(1, (width,), torch.float64))
    return None if bridge.is_sender else received.tolist()


def _cross_and_leave(*args, **settings):
    _cross(*args, **settings)
    mimo_role.shutdown()


def _fails_as_it_leaves(ctx):
    if ctx.role.has_modality_modules:
        _cross(ctx, 2.0)
    dist.barrier()
    with pytest.raises(BridgeError, match="batch 1"):
        mimo_role.shutdown()


def _fails_in_the_middle(ctx):
    with pytest.raises(BridgeError, match=r"expects samples of torch.float64 \[3\]"):
        _cross_and_leave(ctx, 2.0, width=2 + ctx.rank)


def _receives_what_is_not_sent(ctx):
    if ctx.role.has_language_module:
        ctx.bridge("vision").recv_forward(ActivationSpec.of(1, (2,), torch.float64)).start()


def begin_again(end):
    """A second context in the same process group, after an orderly end and after another one."""
    topology, found = Topology.from_modules({"vision": {}, "language": {}}), []
    dist.init_process_group("gloo")
    mimo_role.init(topology)
    mimo_role.shutdown()
    ctx = mimo_role.init(topology)
    found.append(_cross(ctx, 1.0))
    end(ctx)
    mimo_role.shutdown()
    with pytest.raises(ContextError, match=r"could receive what is left\. Call torch\.distributed\.destroy_process_group"):
        mimo_role.init(topology)
    dist.barrier()
    dist.destroy_process_group()
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]))
    dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=ctx.rank, world_size=2)
    found.append(_cross(mimo_role.init(topology), 3.0))
    mimo_role.shutdown()
    return found


@pytest.mark.parametrize("end", [_fails_as_it_leaves, _fails_in_the_middle, _receives_what_is_not_sent])
def test_a_context_never_receives_messages_of_an_earlier_one(end):
    assert run_ranks(begin_again, 2, end) == [[None, None], [[[1.0, 1.0]], [[3.0, 3.0]]]]


def send_to_one_that_has_left():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(departure, "_TIMEOUT_S", 0.0)  # the receiver does not wait for this rank
        patch.setattr(batch_ledger, "_POLL_AFTER_S", 0.0)
        dist.init_process_group("gloo")
        ctx = mimo_role.init(Topology.from_modules({"vision": {}, "language": {}}))
        _cross(ctx, 1.0)
        if ctx.role.has_language_module:
            mimo_role.shutdown()
        dist.barrier()
        if ctx.role.has_modality_modules:
            spec = ActivationSpec.of(1, (2,), torch.float64)
            with pytest.raises(BridgeError, match=r"batch 1, .*, but that rank has left"):
                ctx.bridge("vision").send_forward(torch.ones(1, 2, dtype=torch.float64), spec).start()
        dist.barrier()


def test_a_rank_that_only_sends_finds_that_the_receiver_has_left():
    run_ranks(send_to_one_that_has_left, 2)
