"""Modules in any graph, several tensors, and modules that run several micro-batches at once, against one process."""

import pytest
import torch

import mimo_role
from mimo_role import ActivationSpec, BridgeError, Schedule1F1B, ScheduleError, StageId, StageOutput, Topology
from mimo_role.bridge import transfer
from mimo_role.testing import run_ranks
from tests.mimo_role.pipeline import exact_model as model

pytestmark = pytest.mark.ranks

CHAIN = {"audio": {}, "fusion": {"after": "audio"}}
LAYOUTS = [
    pytest.param({"vision": {}, "language": {}, "decoder": {"after": "language"}}, "non_colocated", id="decoder"),
    pytest.param(
        {"vision": {"dp": 2}, "language": {"pp": 2}, "decoder": {"dp": 3, "after": "language"}}, "non_colocated", id="2:1:3"
    ),
    pytest.param(
        {"vision": {"tp": 2}, "language": {"dp": 2}, "decoder": {"tp": 2, "pp": 2, "after": "language"}},
        "non_colocated",
        id="decoder in stages",
    ),
    pytest.param(
        {"audio": {"dp": 2}, "fusion": {"pp": 2, "after": "audio"}, "vision": {}, "language": {"pp": 2}},
        "non_colocated",
        id="encoders in a chain",
    ),
    pytest.param(
        {"vision": {"dp": 2}, "audio": {"pp": 2}, "language": {"tp": 2}, "decoder": {"dp": 2, "after": "language"}},
        "colocated",
        id="colocated",
    ),
    pytest.param(
        {
            "vision": {"dp": 2},
            "language": {"pp": 2},
            "image": {"dp": 2, "after": ["vision", "language"], "colocate_with": "vision"},
            "speech": {"after": "language"},
        },
        "non_colocated",
        id="two decoders, one beside the encoder",
    ),
]
BATCHES = model.in_parts(3, 2, 4, 1, 2, 5)


def in_schedule(batches, runs):
    """One step; the losses by module, and the gradient of each stage's weights."""
    ctx = mimo_role.current()
    topology = ctx.topology
    mine = {at: model.weights(at).requires_grad_() for at in own_stages(ctx)}

    def run(module, batch, inputs):
        if not isinstance(batch, model.MicroBatch):
            return [run(module, one, {name: of[number] for name, of in inputs.items()}) for number, one in enumerate(batch)]
        if not ctx.role.is_first_stage(module):
            hidden = inputs[module]
        elif topology.after[module]:
            hidden = model.merge(topology, module, inputs)
        else:
            hidden = model.raw(module, model.own_samples(ctx, module, batch))
        return model.compute(mine[StageId(module, ctx.coords(module)["pp"])], hidden)

    schedule = Schedule1F1B(
        ctx,
        run=run,
        spec_of=lambda at, batch: model.spec_of(topology, at.module, batch.count),
        loss_of={
            module: lambda output, batch, module=module: model.loss_of(module, output, model.own_samples(ctx, module, batch))
            for module in topology.module_graph.ends
        },
        micro_batches=runs,
    )
    losses = schedule.step(batches)
    assert len(losses) == (len(batches) if schedule.losses else 0)
    assert sum(losses) == sum(loss for of_module in schedule.losses.values() for loss in of_module)
    own = {module: sum(of_module).item() for module, of_module in schedule.losses.items()}
    return own, {at: weight.grad for at, weight in mine.items()}


def by_hand(batches):
    """The same with calls of bridges, over all samples at once."""
    ctx = mimo_role.current()
    topology, losses, roots = ctx.topology, {}, []
    batch = model.MicroBatch(0, sum(batch.count for batch in batches))
    mine = {at: model.weights(at).requires_grad_() for at in own_stages(ctx)}
    received = {}
    for module in model.order(topology):
        stages, hidden = model.stages_of(topology, module), None
        spec = model.spec_of(topology, module, batch.count)
        for at in stages:
            if at in mine:
                if at.stage == 0 and topology.after[module]:
                    hidden = model.merge(topology, module, {name: received[name, module] for name in topology.after[module]})
                elif at.stage == 0:
                    hidden = model.raw(module, model.own_samples(ctx, module, batch))
                hidden = model.compute(mine[at], hidden)
            if at != stages[-1]:
                hidden = cross(ctx.bridge(module, stage=at.stage), hidden if at in mine else None, spec, roots)
            elif at in mine and module in topology.module_graph.ends:
                losses[module] = model.loss_of(module, hidden, model.own_samples(ctx, module, batch))
        for to in topology.module_graph.feeds[module]:
            received[module, to] = cross(ctx.bridge(module, to=to), hidden if stages[-1] in mine else None, spec, roots)
    torch.autograd.backward([*roots, *losses.values()])
    return {module: loss.item() for module, loss in losses.items()}, {at: weight.grad for at, weight in mine.items()}


def cross(bridge, hidden, spec, roots):
    """What this rank receives over a bridge; the zero of a rank that only sends is one of the roots of its backward."""
    if not (bridge.is_sender or bridge.is_receiver):
        return None
    found = bridge(hidden, spec=spec)
    if bridge.is_receiver:
        return found
    roots.append(found)
    return None


def own_stages(ctx):
    return [StageId(module, ctx.coords(module)["pp"]) for module in ctx.role.modules]


def both(batches, all_runs):
    return [in_schedule(batches, runs) for runs in all_runs] + [by_hand(batches)]


@pytest.mark.parametrize(("modules", "layout"), LAYOUTS)
def test_a_graph_of_modules_equals_one_process_bit_for_bit(modules, layout):
    topology = Topology.from_modules(modules, layout=layout)
    first, last = model.order(topology)[0], model.order(topology)[-1]
    found = run_ranks(both, topology, BATCHES, [{}, {first: 2}, {first: 1, "language": 3, last: 2}], timeout_s=150)
    loss, expected = model.whole(topology, sum(batch.count for batch in BATCHES))
    for way in zip(*found, strict=True):
        total, summed = 0.0, {}
        for rank, (losses, gradients) in enumerate(way):
            replica = {module: coords["tp"] for module, coords in topology.coords_of(rank).items()}
            total += sum(value for module, value in losses.items() if not replica[module])
            for at, gradient in gradients.items():
                if not replica[at.module] and gradient is not None:
                    summed[at] = summed.get(at, 0) + gradient
        assert total == loss
        assert summed.keys() == expected.keys()
        for at, gradient in expected.items():
            assert torch.equal(summed[at], gradient), at


LEVELS = ("embedding", "level_1", "level_2")
WIDTH = 64


def levels(sent, destinations):
    """An encoder's three levels of features, for three layers of a language model in three stages; the bytes that cross."""
    ctx = mimo_role.current()
    weight = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)

    def run(module, batch, inputs):
        if module == "vision":
            hidden = torch.arange(4 * WIDTH, dtype=torch.float64).view(4, WIDTH) % 7 * weight
            return {"embedding": hidden, "level_1": hidden * 2, "level_2": hidden * 3}
        stage = ctx.coords("language")["pp"]
        if destinations:
            hidden = inputs["vision"][LEVELS[stage]] + (inputs["language"] if stage else 0)
            return hidden * weight
        carried = dict(inputs["vision"] if stage == 0 else inputs["language"])
        hidden = (carried.pop("hidden", 0) + carried.pop(LEVELS[stage])) * weight
        return {"hidden": hidden, **carried} if stage < 2 else hidden

    def spec_of(at, batch):
        one = ActivationSpec.of(4, (WIDTH,), torch.float64)
        if at.module == "vision":
            return dict.fromkeys(LEVELS, one)
        return one if destinations else dict.fromkeys(["hidden", *LEVELS[at.stage + 1 :]], one)

    to = {"vision": {name: StageId("language", stage) for stage, name in enumerate(LEVELS)}} if destinations else None
    schedule = Schedule1F1B(ctx, run=run, spec_of=spec_of, loss_of=lambda output, _: (output**2).sum(), destinations=to)
    losses = schedule.step([0, 1])
    return weight.grad, sum(losses), sent.copy()


def count_sent(sent):
    """Count the bytes of data that this rank sends to each other."""
    post = transfer.post

    def counting(messages, ledger):
        for message in messages:
            if message.step.is_send:
                sent[message.peer] = sent.get(message.peer, 0) + message.tensor.nbytes
        post(messages, ledger)

    transfer.post = counting


def both_ways(_):
    sent = {}
    count_sent(sent)
    direct = levels(sent, True)
    sent.clear()
    return direct, levels(sent, False)


def test_features_go_to_the_stage_that_needs_them():
    topology = Topology.from_modules({"vision": {}, "language": {"pp": 3}})
    found = run_ranks(both_ways, topology, None, timeout_s=100)
    for (direct, loss, _), (carried, other_loss, _) in found:
        assert torch.equal(direct, carried)
        assert loss == other_loss
    size = 2 * 4 * WIDTH * 8  # of one tensor, in two micro-batches
    for rank, peer in ((1, 2), (2, 3)):  # the links between stages
        assert found[rank][0][2][peer] == size
    assert found[1][1][2][2] == 3 * size
    assert found[2][1][2][3] == 2 * size
    assert {peer: count // size for peer, count in found[0][0][2].items()} == {1: 1, 2: 1, 3: 1}


def answer(build):
    try:
        return build()
    except ScheduleError as error:
        return str(error)


def frozen_parts(_):
    """What schedules do whose modules do not all train."""
    ctx = mimo_role.current()
    module = next(iter(ctx.role.modules))
    spec = ActivationSpec.of(2, (2,), torch.float64)
    seen = []

    def schedule(parts, frozen="auto"):
        def run(name, batch, inputs):
            hidden = next(iter(inputs.values()), torch.ones(2, 2, dtype=torch.float64))
            seen.append(hidden.requires_grad)
            return parts(hidden)

        return Schedule1F1B(
            ctx,
            run=run,
            spec_of=lambda *_: spec,
            loss_of=lambda output, _: output.sum(),
            modules={module: parts},
            frozen=frozen,
        )

    def linear(trains):
        torch.manual_seed(0)
        return torch.nn.Linear(2, 2, dtype=torch.float64).requires_grad_(trains)

    found = {}
    projector_only = linear(module == "projector")
    schedule(projector_only).step([0, 1])
    found["gradients"] = [parameter.grad is not None for parameter in projector_only.parameters()]
    found["graph"] = seen.copy()
    found["nothing trains"] = answer(lambda: schedule(linear(False)).step([0]))
    changed = linear(module == "projector")
    unfrozen = schedule(changed)
    unfrozen.step([0])
    if module == "tower":
        changed.requires_grad_(True)
        found["unfrozen later"] = answer(lambda: unfrozen.step([0]))
    found["fed by one that trains"] = answer(lambda: schedule(linear(True), frozen=["projector"]))
    return found


def test_a_stage_has_a_backward_if_it_or_one_before_it_trains():
    topology = Topology.from_modules({"tower": {}, "projector": {"after": "tower"}, "language": {}})
    tower, projector, language = run_ranks(frozen_parts, topology, None, timeout_s=100)
    assert [found["gradients"] for found in (tower, projector, language)] == [[False] * 2, [True] * 2, [False] * 2]
    assert tower["graph"] == [False, False]
    assert projector["graph"] == [False, False]
    assert language["graph"] == [True, True]
    nothing = "no parameter in modules= requires gradients on any rank; use forward(), or requires_grad_(True)"
    assert tower["nothing trains"] == language["nothing trains"] == nothing
    assert tower["unfrozen later"].startswith("parameters of tower stage 0 require gradients now and did not at the first step")
    assert language["fed by one that trains"].startswith("frozen: 'projector' takes the output of tower, whose gradients pass")


def refusals(_):
    ctx = mimo_role.current()
    spec = ActivationSpec.of(1, (2,), torch.float64)
    one = {"run": lambda *_: torch.ones(1, 2), "spec_of": lambda *_: spec, "loss_of": lambda output, _: output.sum()}
    two = dict.fromkeys(("image", "speech"), one["loss_of"])

    def ask(**settings):
        return answer(lambda: Schedule1F1B(ctx, **{**one, "loss_of": two, **settings}).step([0, 1, 2]))

    return [
        ask(loss_of=one["loss_of"]),
        ask(loss_of={"image": one["loss_of"]}),
        ask(micro_batches={"vison": 1}),
        ask(micro_batches={"vision": 2}),
        ask(destinations={"vision": {"a": ("language", 0)}}),
    ]


def test_what_does_not_fit_the_graph_is_refused():
    modules = {"vision": {}, "language": {}, "image": {"after": "language"}, "speech": {"after": "language"}}
    found = run_ranks(refusals, Topology.from_modules(modules), None, timeout_s=60)
    assert found == [found[0]] * 4
    assert found[0] == [
        "loss_of is one function, but image, speech compute losses; pass a mapping with one for each",
        "loss_of has image; these modules compute losses: image, speech",
        "micro_batches: no module 'vison'; there are vision, language, image, speech",
        "micro_batches: 2 runs of 'vision' do not divide 3 micro-batches",
        "destinations: 'a' of 'vision' goes to ('language', 0); name a module or a StageId, or several",
    ]


def with_other_names(_):
    """What ranks report whose functions name the tensors of a link otherwise, or of which one has fewer."""
    ctx = mimo_role.current()
    spec = ActivationSpec.of(1, (2,), torch.float64)
    names = {"a": spec, ("b" if ctx.rank == 0 else "c"): spec}
    tensors = {name: torch.ones(1, 2, dtype=torch.float64) for name in names}
    schedule = Schedule1F1B(
        ctx, run=lambda *_: tensors, spec_of=lambda *_: names, loss_of=lambda output, _: output["a"].sum().requires_grad_()
    )
    try:
        schedule.step([0])
    except BridgeError as error:
        return str(error)
    return "no error"


def test_two_sides_that_name_other_tensors_are_refused():
    for message in run_ranks(with_other_names, Topology.from_modules({"vision": {}, "language": {}}), None, timeout_s=30):
        assert "whose spec_of() names other tensors; use the same names on all ranks" in message


def with_auxiliary(_):
    """A language model whose own loss is added to that of the decoder after it."""
    ctx = mimo_role.current()
    weight = torch.full((2,), 3.0, dtype=torch.float64, requires_grad=True)

    def run(module, batch, inputs):
        hidden = next(iter(inputs.values()), torch.ones(1, 2, dtype=torch.float64)) * weight
        return StageOutput(hidden, hidden.sum()) if module == "language" else hidden

    spec = ActivationSpec.of(1, (2,), torch.float64)
    schedule = Schedule1F1B(ctx, run=run, spec_of=lambda *_: spec, loss_of=lambda output, _: output.sum())
    with torch.profiler.profile() as profile:
        schedule.step([0, 1])
    spans = [event.name for event in profile.events() if event.name.startswith(("forward ", "backward ", "bridge "))]
    auxiliary = {name: [loss.item() for loss in found] for name, found in schedule.auxiliary_losses.items()}
    return weight.grad.tolist(), auxiliary, spans


def test_a_module_that_feeds_another_may_have_a_loss_of_its_own():
    topology = Topology.from_modules({"language": {}, "decoder": {"after": "language"}})
    # h = w, y = h w; loss: y + h. By the first weight 3 + 1 for each element, by the second 3; twice.
    (first, auxiliary, spans), (second, none, other_spans) = run_ranks(with_auxiliary, topology, None)
    assert (first, second) == ([8.0, 8.0], [6.0, 6.0])
    assert (auxiliary, none) == ({"language": [6.0, 6.0]}, {})
    of_language = [f"{phase} language.0, micro-batch {number}" for phase in ("forward", "backward") for number in (0, 1)]
    assert sorted(spans) == sorted([*of_language, "bridge language", "bridge language"])
    assert other_spans.count("bridge language") == 2


def with_wrapped_tower(_):
    """A frozen tower in DDP, given to the schedule or named as frozen; the mean loss of a decoder."""
    ctx = mimo_role.current()
    spec = ActivationSpec.of(2, (2,), torch.float64)
    module = next(iter(ctx.role.modules))
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2, dtype=torch.float64)
    if module == "tower":
        layer = torch.nn.parallel.DistributedDataParallel(layer, process_group=ctx.group("tower", "dp")).requires_grad_(False)

    def run(_, batch, inputs):
        return layer(next(iter(inputs.values()), torch.ones(1, 2, dtype=torch.float64)))

    one = {"run": run, "spec_of": lambda *_: spec, "loss_of": lambda output, _: output.sum() / 4}
    for settings in ({"modules": {module: layer}, "frozen": "auto"}, {"frozen": ["tower"]}):
        schedule = Schedule1F1B(ctx, **one, **settings)
        losses = schedule.step([0, 1])
    outputs = schedule.forward([0])
    assert not schedule._results.outputs
    return ctx.mean_loss(losses).item(), sum(loss.item() for loss in losses), ctx.is_logging_rank, len(outputs)


def test_a_wrapped_frozen_tower_and_the_loss_of_a_decoder():
    topology = Topology.from_modules({"tower": {"dp": 2}, "language": {}, "decoder": {"after": "language"}})
    found = run_ranks(with_wrapped_tower, topology, None, timeout_s=60)
    assert found[3][1] != 0
    assert [mean for mean, *_ in found] == [pytest.approx(found[3][1], rel=1e-15)] * 4
    assert [is_logging for _, _, is_logging, _ in found] == [False, False, False, True]
    assert [count for *_, count in found] == [0, 0, 0, 1]
