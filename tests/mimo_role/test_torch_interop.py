"""FSDP2, DTensor and torch's pipelining on a context's mesh, on a module that has only a part of the world."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mimo_role
from mimo_role import Topology
from mimo_role.testing import run_ranks

pytestmark = pytest.mark.ranks

WIDTH, BATCH = 8, 12


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).double()


def batch():
    return torch.randn(BATCH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def oracle():
    """Gradients of the whole batch in one process, by parameter."""
    model = network()
    model(batch()).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)


class CountingGroups:
    """How many groups torch makes while it is entered."""

    def __enter__(self):
        self.made = 0
        self._original = dist.distributed_c10d._new_group_with_tag

        def counting(*args, **settings):
            self.made += 1
            return self._original(*args, **settings)

        dist.distributed_c10d._new_group_with_tag = counting
        return self

    def __exit__(self, *_):
        dist.distributed_c10d._new_group_with_tag = self._original


def sliced_mesh():
    context = mimo_role.current()
    if not context.role.has_language_module:
        return None
    with CountingGroups() as counted:
        mesh = context.mesh("language")
        both = mesh["dp", "cp"]
        shape, names, own = both.shape, both.mesh_dim_names, both.mesh.tolist()
        total = torch.tensor(context.rank)
        dist.all_reduce(total, group=both.get_group("cp"))
    expected = sum(context.topology.grids["language"].row_of(context.rank, "cp"))
    return shape, names, own, int(total) == expected, counted.made


def test_a_slice_of_two_axes_creates_no_groups():
    found = run_ranks(sliced_mesh, Topology.from_modules({"vision": {"dp": 1}, "language": {"tp": 2, "cp": 2, "dp": 2}}))
    assert found[0] is None
    assert found[1] == ((2, 2), ("dp", "cp"), [[1, 3], [5, 7]], True, 0)
    assert found[8] == ((2, 2), ("dp", "cp"), [[2, 4], [6, 8]], True, 0)


def train_with_fsdp(axes):
    from torch.distributed.fsdp import fully_shard

    context = mimo_role.current()
    if not context.role.has_language_module:
        return None
    with CountingGroups() as counted:
        mesh = context.mesh("language")[axes[0]] if len(axes) == 1 else context.mesh("language", *axes)
        model = network()
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        lane, lanes = mesh.get_local_rank(), mesh.size()
        model(batch().chunk(lanes)[lane]).square().sum().backward()
        # FSDP2 averages over the lanes.
        gradients = {name: parameter.grad.full_tensor() * lanes for name, parameter in model.named_parameters()}
    return gradients, counted.made


@pytest.mark.parametrize(
    ("axes", "language"),
    [
        pytest.param(["dp"], {"tp": 2, "dp": 3}, id="a slice"),
        pytest.param(["dp", "cp"], {"cp": 2, "dp": 2}, id="two axes as one"),
    ],
)
def test_fully_shard_on_a_part_of_the_world(axes, language):
    found = run_ranks(train_with_fsdp, Topology.from_modules({"vision": {"dp": 2}, "language": language}), axes)
    assert found[:2] == [None, None]
    for gradients, made in found[2:]:
        assert_equal(gradients, oracle())
        assert made == 0


def train_on_flattened_dimensions():
    """FSDP2 over dp and cp beside tensor parallelism; then over dp alone, with `sum_gradients` over cp."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    context = mimo_role.current()
    coords, found = context.coords("language"), []
    with CountingGroups() as counted:
        for dtype, lanes in [(torch.float64, ("dp", "cp")), (torch.float32, ("dp", "cp")), (torch.float64, ("dp",))]:
            mesh = context.mesh("language", lanes, "tp")
            assert mesh is context.mesh("language", lanes, "tp")
            assert mesh.mesh_dim_names == ("_".join(lanes), "tp")
            model = parallelize_module(network().to(dtype), mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=mesh["_".join(lanes)])
            mimo_role.set_gradient_sum(model)
            lane = 2 * coords["dp"] + coords["cp"]
            model(batch().to(dtype).chunk(4)[lane]).square().sum().backward()
            context.sum_gradients({"language": model})
            context.check_replicas({"language": model})
            found.append({name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()})
    return found, counted.made


def test_fully_shard_beside_tensor_parallelism_adds_up_over_flattened_dimensions():
    world = Topology.from_modules({"language": {"tp": 2, "cp": 2, "dp": 2}}, layout="colocated")
    for (float64, float32, over_cp), made in run_ranks(train_on_flattened_dimensions, world):
        assert_equal(float64, oracle())
        assert_equal(over_cp, oracle())
        for name, gradient in oracle().items():
            torch.testing.assert_close(float32[name], gradient.float(), rtol=1e-5, atol=1e-5)
        assert made == 0


def meshes_of_dimensions():
    context = mimo_role.current()
    names = [("cp", "dp"), (("cp", "dp"), "tp"), ("tp", ("dp", "cp")), (("dp",), "cp", "tp"), ()]
    found = []
    for axes in names:
        mesh = context.mesh("language", *axes)
        same = [dist.get_process_group_ranks(mesh.get_group(axis)) for axis in range(mesh.ndim)]
        at = [group[index] for group, index in zip(same, mesh.get_coordinate(), strict=True)]
        found.append((mesh.mesh_dim_names, mesh.mesh.tolist(), at == [context.rank] * mesh.ndim))
    for axes in [(("dp", "cp"), "dp"), ((), "tp"), (["dp", "cp"], "tp"), (("dp", "sp"), "tp")]:
        with pytest.raises(mimo_role.AxisError) as raised:
            context.mesh("language", *axes)
        found.append(str(raised.value))
    return found


def test_a_mesh_has_the_dimensions_of_its_arguments():
    found = run_ranks(
        meshes_of_dimensions, Topology.from_modules({"language": {"tp": 2, "cp": 2, "dp": 2}}, layout="colocated")
    )
    for rank, own in enumerate(found):
        tp = rank % 2
        assert own[:5] == [
            (("cp_dp",), [tp, 2 + tp, 4 + tp, 6 + tp], True),
            (("cp_dp", "tp"), [[0, 1], [2, 3], [4, 5], [6, 7]], True),
            (("tp", "dp_cp"), [[0, 2, 4, 6], [1, 3, 5, 7]], True),
            (("dp", "cp", "tp"), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]], True),
            (("pp", "dp", "cp", "tp"), [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]], True),
        ]
        assert own[5:] == [
            "duplicate axis: dp, cp, dp",
            "a dimension of a mesh is an axis or a tuple of axes, not ()",
            "a dimension of a mesh is an axis or a tuple of axes, not ['dp', 'cp']",
            "module 'language' has no grid with the axes dp, sp, tp; it has tp, cp, dp, pp; or expt_tp, ep, expt_dp, pp",
        ]


def train_with_tensor_parallelism():
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    context = mimo_role.current()
    if not context.role.has_language_module:
        return None
    mesh = context.mesh("language")
    with CountingGroups() as counted:
        model = parallelize_module(network(), mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        model(batch()).square().sum().backward()
        gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    return gradients, counted.made


def test_parallelize_module_on_a_part_of_the_world():
    found = run_ranks(
        train_with_tensor_parallelism, Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}})
    )
    assert found[:2] == [None, None]
    for gradients, made in found[2:]:
        assert_equal(gradients, oracle())
        assert made == 0


def train_with_pipelining():
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    warnings.filterwarnings("ignore")
    context = mimo_role.current()
    if not context.role.has_language_module:
        return None
    group = context.mesh("language").get_group("pp")
    at, stages = context.coords("language")["pp"], 2
    whole = network()
    part = nn.Sequential(*([whole[0], whole[1]] if at == 0 else [whole[2]]))
    stage = PipelineStage(part, at, stages, context.device, group=group)
    schedule = Schedule1F1B(stage, n_microbatches=3, loss_fn=lambda output, _: output.square().sum(), scale_grads=False)
    if at == 0:
        schedule.step(batch())
    else:
        schedule.step(target=torch.zeros(BATCH, WIDTH))
    return {f"{2 * at}.{name.partition('.')[2]}": parameter.grad for name, parameter in part.named_parameters()}


def test_pipelining_on_a_part_of_the_world():
    found = run_ranks(train_with_pipelining, Topology.from_modules({"vision": {"dp": 1}, "language": {"pp": 2, "dp": 2}}))
    assert found[0] is None
    expected = oracle()
    for rank in (1, 2):
        assert_equal(found[rank] | found[rank + 2], expected)
