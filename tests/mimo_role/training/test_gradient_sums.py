"""Sums of random gradients on real ranks, in several layouts, against the same sums in one process."""

import random

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import mimo_role
from mimo_role import MimoError, Topology
from mimo_role.training.gradient_sums import GradientSummer
from tests.mimo_role.fresh_worlds import Job, run_jobs

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(200)]

CASES = 25
LAYOUTS = {
    "unequal lanes on the same ranks": Topology.from_modules(
        {"vision": {"dp": 6}, "language": {"cp": 3, "dp": 2}}, layout="colocated"
    ),
    "tensor parallelism": Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}}),
    "two stages": Topology.from_modules({"vision": {"pp": 2}, "language": {"cp": 2, "pp": 2}}),
    "experts": Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 4, "ep": 2}}),
}


class Holder(nn.Module):
    """Parameters under their names, and once more those that are shared."""

    def __init__(self, parameters):
        super().__init__()
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)
            if getattr(parameter, "is_shared", False):
                self.register_parameter(f"{name}_again", parameter)


class Case:
    """Random parameters of one module, the same on all ranks of a stage, and the gradients of all ranks."""

    def __init__(self, ctx, module, seed):
        self.ctx, self.module, self.seed = ctx, module, seed
        self.coords, self.grid = ctx.coords(module), ctx.topology.grids[module]
        self.experts = ctx.topology.expert_grids.get(module)
        self.random = random.Random(f"{module} {seed}")
        self.kinds = ["plain", "frozen", "shared", "transposed"]
        self.kinds += ["expert"] if self.experts else []
        self.kinds += ["rows", "copies", "partial"] if self.grid.axis_size("tp") > 1 else []
        self.kinds += ["tied"] if self.grid.axis_size("pp") > 1 else []
        self.expected = {}
        self.parameters = {f"{self.random.choice(self.kinds)}{n}": None for n in range(self.random.randrange(9))}
        for name in self.parameters:
            self.parameters[name] = self.make(name, name.rstrip("0123456789"))

    def whole(self, name, rank, shape, dtype):
        """The gradient that a rank has before the sum, of the whole parameter; `None` if it has none."""
        coords = self.grid.coords(rank)
        at = {axis: coordinate for axis, coordinate in coords.items() if axis != "tp"}
        own = random.Random(f"{self.seed} {name} {at}")
        if own.random() < self.missing[name]:
            return None
        return torch.tensor([own.randrange(-99, 99) / 64 for _ in range(shape.numel())], dtype=dtype).view(shape)

    @property
    def missing(self):
        return {name: random.Random(f"{self.module} {self.seed} {name}").choice([0, 0, 0.3, 0.9]) for name in self.parameters}

    def summed_ranks(self, kind):
        if kind == "expert":
            return self.experts.row_of(self.ctx.rank, ["expt_dp"])
        lanes = self.grid.row_of(self.ctx.rank, ["dp", "cp"])
        return [end for lane in lanes for end in self.grid.row_of(lane, ["pp"])] if kind == "tied" else lanes

    def make(self, name, kind):
        shape = torch.Size(self.random.choices([0, 1, 2, 3, 5], k=self.random.randrange(4)))
        if kind in ("rows", "transposed"):
            shape = torch.Size([5, 3])
        dtype = self.random.choice([torch.float64, torch.float32])
        parts = [self.whole(name, rank, shape, dtype) for rank in self.summed_ranks(kind)]
        present = [part for part in parts if part is not None]
        self.expected[name] = sum(present) if present and kind != "frozen" else None
        own = None if kind == "frozen" else self.whole(name, self.ctx.rank, shape, dtype)
        return self.placed(kind, torch.ones(shape, dtype=dtype), own)

    def placed(self, kind, weight, gradient):
        if kind in ("rows", "copies", "partial"):
            mesh = self.ctx.mesh(self.module)["tp"]
            place = [Shard(0)] if kind == "rows" else [Replicate()]
            weight = distribute_tensor(weight, mesh, place, src_data_rank=None)
            if gradient is not None and kind == "partial":
                gradient = DTensor.from_local(gradient / 2, mesh, [Partial()])
            elif gradient is not None:
                gradient = distribute_tensor(gradient, mesh, place, src_data_rank=None)
        parameter = nn.Parameter(weight, requires_grad=kind != "frozen")
        if gradient is not None and kind == "transposed":
            gradient = gradient.T.contiguous().T
        parameter.grad = gradient
        parameter.is_shared = kind == "shared"
        if kind == "tied":
            parameter.shared_embedding = True
        if kind == "expert":
            parameter.allreduce = False
        return parameter

    def check(self):
        for name, expected in self.expected.items():
            found = self.parameters[name].grad
            assert (found is None) == (expected is None), (self.module, self.seed, name)
            if found is not None:
                whole = found.full_tensor() if isinstance(found, DTensor) else found
                torch.testing.assert_close(whole, expected, rtol=1e-14, atol=0, msg=f"{self.module} {self.seed} {name}")


def random_sums(found):
    ctx = mimo_role.current()
    for seed in range(CASES):
        size = random.Random(seed).choice([1, 40, 1 << 20])
        summer = GradientSummer(ctx.topology, ctx.rank, ctx.device, ctx.coords, ctx.group, bucket_bytes=size)
        cases = {module: Case(ctx, module, seed) for module in ctx.role.modules}
        summer.sum({module: Holder(case.parameters) for module, case in cases.items()})
        for case in cases.values():
            case.check()
            found.append(sum(expected is not None for expected in case.expected.values()))


def test_sums_are_those_of_one_process():
    for name, outcomes in zip(LAYOUTS, run_jobs(*(Job(random_sums, layout) for layout in LAYOUTS.values())), strict=True):
        assert [outcome.errors for outcome in outcomes] == [""] * len(outcomes), name
        assert all(sum(outcome.found) > CASES for outcome in outcomes)


def with_gradient(shape=(2, 3), dtype=torch.float32, **settings):
    parameter = nn.Parameter(torch.zeros(shape, dtype=dtype), **settings)
    if parameter.requires_grad:
        parameter.grad = torch.ones_like(parameter)
    return parameter


def tied(parameter):
    parameter.shared_embedding = True
    return parameter


def sparse():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    return embedding


def with_other_gradient():
    parameter = with_gradient()
    parameter.grad_dtype = None
    parameter.grad = torch.ones(2, 3, dtype=torch.float64)
    return Holder({"w": parameter})


ODD = {
    "a shape": lambda: {"language": Holder({"w": with_gradient((3, 2))})},
    "a name": lambda: {"language": Holder({"v": with_gradient()})},
    "a dtype": lambda: {"language": Holder({"w": with_gradient(dtype=torch.float64)})},
    "frozen": lambda: {"language": Holder({"w": with_gradient(requires_grad=False)})},
    "more": lambda: {"language": Holder({"w": with_gradient(), "more": with_gradient()})},
    "nothing": dict,
    "tied": lambda: {"language": Holder({"w": tied(with_gradient())})},
    "no module": lambda: {"audio": nn.Linear(1, 1)},
    "sparse": lambda: {"language": sparse()},
    "gradient": lambda: {"language": with_other_gradient()},
}
PAIRS = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2, "pp": 2}})
SECOND_LANE = 3


def refusals(found):
    ctx = mimo_role.current()
    for make in ODD.values():
        plain = {name: Holder({"w": with_gradient()}) for name in ctx.role.modules}
        try:
            ctx.sum_gradients(make() if ctx.rank == SECOND_LANE else plain)
            found.append("no error")
        except MimoError as error:
            found.append(f"{type(error).__name__}: {error}")
    plain = Holder({"w": with_gradient()})
    ctx.sum_gradients(dict.fromkeys(ctx.role.modules, plain))
    found.append(plain.w.grad.unique().tolist())
    ddp = DistributedDataParallel(nn.Linear(1, 1), process_group=ctx.group(next(iter(ctx.role.modules)), "dp"))
    try:
        ctx.sum_gradients(dict.fromkeys(ctx.role.modules, nn.Sequential(ddp)))
    except MimoError as error:
        found.append(str(error))


def test_a_mismatch_or_a_refusal_is_an_error_on_all_ranks_of_the_group():
    (outcomes,) = run_jobs(Job(refusals, PAIRS))
    assert [outcome.errors for outcome in outcomes] == [""] * 6
    found = [dict(zip([*ODD, "after", "ddp"], outcome.found, strict=True)) for outcome in outcomes]

    same = "language.w [2, 3] torch.float32 on cpu, along dp"
    odd = {
        "a shape": "language.w [3, 2] torch.float32 on cpu, along dp",
        "a name": "language.v [2, 3] torch.float32 on cpu, along dp",
        "a dtype": "language.w [2, 3] torch.float64 on cpu, along dp",
        "frozen": "nothing",
        "nothing": "nothing",
    }
    for name, other in odd.items():
        message = f"have different parameters of 'language' to sum: {same!r} and {other!r}; build and freeze the same ones"
        assert message in found[2][name] == found[3][name]
        assert found[2][name].startswith("GradientError: sum_gradients: ranks 2 and 3 have")
    assert "'nothing' and 'language.more [2, 3]" in found[2]["more"] == found[3]["more"]
    assert "sum_gradients: ranks 3 and 5 have different parameters of 'language' to sum" in found[3]["tied"] == found[5]["tied"]
    assert found[3]["no module"] == "AxisError: no module 'audio'; there are vision, language"
    assert found[3]["sparse"].startswith("GradientError: language.weight: its gradient is torch.sparse_coo; use a dense one")
    assert found[3]["gradient"].startswith("GradientError: language.w: its gradient is [2, 3] torch.float64, but the parameter")
    elsewhere = "GradientError: sum_gradients failed on other ranks; their errors name the cause"
    for name in ("no module", "sparse", "gradient"):
        assert found[2][name] == found[5][name] == elsewhere
    for own in found:
        assert own["after"] == [2.0]
        assert "0: DistributedDataParallel reduces its gradients by itself; leave it out of sum_gradients" in own["ddp"]
    assert {found[0][name] for name in ODD} == {"no error"}  # vision's lanes agree
