"""A bridge transfers the batch that is expected: exact values, or an error on every rank that names the batch."""

import gc
import os
import time
import weakref
from contextlib import nullcontext
from importlib import import_module

import pytest
import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

import mimo_role
from mimo_role import ActivationSpec, BridgeError, Schedule1F1B, Topology
from mimo_role.testing import run_ranks
from tests.mimo_role.fresh_worlds import Job, run_jobs

pytestmark = pytest.mark.ranks

TWO = Topology.from_modules({"vision": {}, "language": {}})
TWO_ENCODERS = Topology.from_modules({"vision": {"dp": 2}, "language": {}})
TWO_LANGUAGE_LANES = Topology.from_modules({"vision": {}, "language": {"dp": 2}})
SPEC = ActivationSpec.of(2, (3,), torch.float64)
QUICK_S = 5.0


def imports_the_compiler(found):
    found.append(import_module("torch._dynamo").__name__)


def run_after_imports(*jobs):
    """As `run_jobs`, after ranks have imported what torch imports at the first checkpoint or optimizer: it can take seconds."""
    return run_jobs(Job(imports_the_compiler, TWO), *jobs)[1:]


def weight_of(number):
    """The encoder's only parameter before a batch."""
    return torch.tensor([number + 1.0, number - 2.0, 0.5], dtype=torch.float64, requires_grad=True)


def encoded(weight, lanes=1):
    """A lane's samples of a batch of two."""
    return weight.expand(2 // lanes, 3) * 2


def losses_of(embeddings, number):
    return embeddings.sum(), (10 * (number + 1)) * embeddings.square().sum()


def gradient_of(number):
    """Of the encoder's parameter, in one process."""
    weight = weight_of(number)
    sum(losses_of(encoded(weight), number)).backward()
    return weight.grad.tolist()


def names_the_batch(outcomes, number=0):
    return all(
        "the bridge vision stage 0 -> language stage 0" in own.errors and f"batch {number}" in own.errors for own in outcomes
    )


# More batches in flight than tags can distinguish


def many_in_flight(found, count, sender_reversed, receiver_reversed):
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        weights = [weight_of(number) for number in range(count)]
        zeros = [bridge(encoded(weight), spec=SPEC) for weight in weights]
        for zero in reversed(zeros) if sender_reversed else zeros:
            zero.backward()
        found += [weight.grad.tolist() for weight in weights]
        return
    losses = [sum(losses_of(bridge(spec=SPEC), number)) for number in range(count)]
    for loss in reversed(losses) if receiver_reversed else losses:
        loss.backward()


def test_gradients_of_300_batches_in_flight_are_exact_in_any_order():
    jobs = [Job(many_in_flight, TWO, (300, *orders)) for orders in ((True, False), (False, True))]
    expected = [gradient_of(number) for number in range(300)]
    for sender, receiver in run_jobs(*jobs):
        assert (sender.errors, receiver.errors) == ("", "")
        assert sender.found == expected


# Several backward passes through one call


def several_backwards(found, kind, count):
    """The receiver runs two backwards for each of the first two batches, and one for all others."""
    bridge = mimo_role.current().bridge("vision")
    for number in range(count):
        if bridge.is_sender:
            weight = weight_of(number)
            bridge(encoded(weight), spec=SPEC).backward()
            found.append(weight.grad.tolist())
            continue
        embeddings = bridge(spec=SPEC)
        if number > 1:
            sum(losses_of(embeddings, number)).backward()
        elif kind == "two losses":
            first, second = losses_of(embeddings, number)
            first.backward(retain_graph=True)
            second.backward()
        else:
            for row in embeddings:
                sum(losses_of(row, number)).backward(retain_graph=True)


def test_gradients_of_several_backward_passes_add_up():
    jobs = [Job(several_backwards, TWO, (kind, 67)) for kind in ("two losses", "sample by sample")]
    expected = [gradient_of(number) for number in range(67)]
    for sender, receiver in run_jobs(*jobs):
        assert (sender.errors, receiver.errors) == ("", "")
        assert sender.found == expected


def backward_too_late(found):
    """The second backward through batch 0 comes after the forward of batch 1."""
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        for number in range(3):
            weight = weight_of(number)
            bridge(encoded(weight), spec=SPEC).backward()
        return
    first, second = losses_of(bridge(spec=SPEC), 0)
    first.backward(retain_graph=True)
    kept = bridge(spec=SPEC)
    second.backward()
    found.append(kept)


def backward_twice_on_the_sender(found):
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        weight = weight_of(0)
        zero = bridge(encoded(weight), spec=SPEC)
        zero.backward(retain_graph=True)
        found.append(weight.grad.tolist())
        zero.backward()
        found.append(weight.grad.tolist())
        return
    sum(losses_of(bridge(spec=SPEC), 0)).backward()
    bridge(spec=SPEC)


def test_a_backward_after_the_gradients_have_been_sent_fails_on_both_sides():
    late, twice = run_jobs(Job(backward_too_late, TWO), Job(backward_twice_on_the_sender, TWO))
    assert names_the_batch(late)
    assert "again after its gradients had been sent" in late[0].errors
    assert late[1].found == []
    assert names_the_batch(twice)
    assert all("a second time on its sender" in own.errors for own in twice)
    assert twice[0].found == [gradient_of(0)]


# Embeddings that the language model does not use


def unused_embeddings(found, kept, unused_lanes):
    """Batches 1 and 3 are not used; 3 is the last."""
    ctx = mimo_role.current()
    bridge = ctx.bridge("vision")
    for number in range(4):
        if bridge.is_sender:
            weight = weight_of(number)
            rows = encoded(weight, bridge.source.lanes).detach().requires_grad_()
            bridge(rows, spec=SPEC).backward()
            found.append(rows.grad.tolist())
            continue
        embeddings = bridge(spec=SPEC)
        if number % 2 == 0 or bridge.destination.place_of(ctx.rank).lane not in unused_lanes:
            sum(losses_of(embeddings, number)).backward()
        if not kept:
            del embeddings


def gradients_of_rows(number):
    rows = encoded(weight_of(number)).detach().requires_grad_()
    sum(losses_of(rows, number)).backward()
    return rows.grad.tolist()


def test_gradients_of_unused_embeddings_are_zeros():
    zeros = [0.0] * 3
    jobs = [
        Job(unused_embeddings, topology, (kept, unused_lanes))
        for kept in (False, True)
        for topology, unused_lanes in ((TWO, [0]), (TWO_ENCODERS, [0]), (TWO_LANGUAGE_LANES, [1]), (TWO_LANGUAGE_LANES, [0, 1]))
    ]
    for (_, topology, (_, unused)), outcomes in zip(jobs, run_jobs(*jobs), strict=True):
        assert [own.errors for own in outcomes] == [""] * len(outcomes)
        assert max(own.seconds for own in outcomes) < QUICK_S
        expected = [gradients_of_rows(number) for number in range(4)]
        unused_rows = [0, 1] if topology is not TWO_LANGUAGE_LANES else unused
        for number in (1, 3):
            expected[number] = [zeros if row in unused_rows else own for row, own in enumerate(expected[number])]
        senders = [own.found for own in outcomes[: 2 if topology is TWO_ENCODERS else 1]]
        assert [[row for found in senders for row in found[number]] for number in range(4)] == expected


# Sides that disagree about gradients


def no_grad_on_one_side(found, side, count):
    bridge = mimo_role.current().bridge("vision")
    own = "sender" if bridge.is_sender else "receiver"
    for number in range(count):
        with torch.no_grad() if own == side else nullcontext():
            crossed = bridge(encoded(weight_of(number)), spec=SPEC) if bridge.is_sender else bridge(spec=SPEC)
        if own != side:
            crossed.sum().backward()
        bridge.wait()
        found.append(number)


def test_no_grad_on_one_side_fails_at_the_first_batch():
    jobs = [Job(no_grad_on_one_side, TWO, (side, count)) for side in ("sender", "receiver") for count in (1, 3)]
    for outcomes in run_jobs(*jobs):
        assert names_the_batch(outcomes)
        assert all("torch.no_grad()" in own.errors for own in outcomes)
        assert [own.found for own in outcomes] == [[], []]
        assert max(own.seconds for own in outcomes) < QUICK_S


def checkpointed(found, use_reentrant, ahead):
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        weights = [weight_of(number) for number in range(ahead)]
        for zero in [bridge(encoded(weight), spec=SPEC) for weight in weights]:
            zero.backward()
        found += [weight.grad.tolist() for weight in weights]
        return
    head = weight_of(0)
    for _ in range(ahead):
        checkpoint(lambda scale: (bridge(spec=SPEC) * scale).square().sum(), head, use_reentrant=use_reentrant).backward()
        found.append(head.grad.tolist())


def test_activation_checkpointing_around_a_call_fails_on_both_sides():
    jobs = [Job(checkpointed, TWO, (use_reentrant, ahead)) for use_reentrant in (False, True) for ahead in (1, 3)]
    for (_, _, (use_reentrant, _)), outcomes in zip(jobs, run_after_imports(*jobs), strict=True):
        assert names_the_batch(outcomes, 0 if use_reentrant else 1)  # the one that the recomputation would have taken
        assert all("torch.utils.checkpoint" in own.errors for own in outcomes)
        assert [own.found for own in outcomes] == [[], []]
        assert max(own.seconds for own in outcomes) < QUICK_S


KEPT = []


def never_back(found, kept):
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        zero = bridge(encoded(weight_of(0)), spec=SPEC)
        KEPT[:] = [zero] if kept else []
    else:
        sum(losses_of(bridge(spec=SPEC), 0)).backward()


def test_gradients_that_a_sender_never_requests_are_an_error_that_names_the_batch():
    for outcomes in run_jobs(Job(never_back, TWO, (False,)), Job(never_back, TWO, (True,))):
        assert all("gradients of batch 0" in own.errors for own in outcomes), outcomes
        assert all("bridge" in own.errors for own in outcomes)


def fails_as_it_leaves(found):
    """The sender fails in `shutdown()`, and its process group stays open until the receiver has failed, too."""
    bridge = mimo_role.current().bridge("vision")
    if bridge.is_sender:
        bridge(encoded(weight_of(0)), spec=SPEC)
        left = mimo_role.shutdown
    else:
        sum(losses_of(bridge(spec=SPEC), 0)).backward()
        left = lambda: bridge(spec=SPEC)  # noqa: E731
    with pytest.raises(BridgeError) as raised:
        left()
    found.append(str(raised.value))
    dist.barrier()


def test_a_rank_that_fails_as_it_leaves_releases_its_peers():
    (outcomes,) = run_jobs(Job(fails_as_it_leaves, TWO))
    assert all("gradients of batch 0 came back" in own.found[0] for own in outcomes), outcomes
    assert [own.error for own in outcomes] == ["", ""]


# Ranks that do not run the same steps and batches


def scheduled(found, counts, numbers):
    """Two steps; every micro-batch has its number as data."""
    ctx = mimo_role.current()
    (module,) = ctx.role.modules
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def run(name, micro, inputs):
        return weight.expand(2, 3) * micro if name == "vision" else inputs["vision"] * 1

    def loss_of(output, micro):
        found.append((output[0, 0].item(), micro))
        return output.square().sum()

    schedule = Schedule1F1B(ctx, run=run, spec_of=lambda *_: SPEC, loss_of=loss_of)
    for step in range(2):
        if numbers[module] is not None:
            ctx.step(numbers[module] + step)
        schedule.step([float(10 * step + micro) for micro in range(1, counts[module] + 1)])
    if module == "vision":
        found.append(weight.grad.tolist())


def test_schedules_with_different_micro_batches_or_steps_fail_at_the_first_one():
    alike = {"vision": 3, "language": 3}
    unequal = [{"vision": 4, "language": 3}, {"vision": 3, "language": 4}, {"vision": 1, "language": 2}]
    no_steps, same = dict.fromkeys(alike), dict.fromkeys(alike, 7)
    wrong = [(counts, no_steps) for counts in unequal] + [(alike, {"vision": 7, "language": 8})]
    right = [(alike, numbers) for numbers in (no_steps, same, same | {"vision": None}, same | {"language": None})]
    outcomes = run_jobs(*(Job(scheduled, TWO, args) for args in wrong + right))
    for ranks, (_, numbers) in zip(outcomes[: len(wrong)], wrong, strict=True):
        assert names_the_batch(ranks)
        expected = "step 8, micro-batch 0" if numbers["vision"] else "micro-batch 0 of "
        assert all(expected in own.errors for own in ranks), ranks
        assert [own.found for own in ranks] == [[], []]
        assert max(own.seconds for own in ranks) < QUICK_S
    micros = [float(10 * step + micro) for step in range(2) for micro in (1, 2, 3)]
    for vision, language in outcomes[len(wrong) :]:
        assert (vision.errors, language.errors) == ("", "")
        assert language.found == [(micro, micro) for micro in micros]
        assert vision.found == [[sum(4 * micro**2 for micro in micros)] * 3]


def unequal_batches(found, counts, trains):
    ctx = mimo_role.current()
    bridge = ctx.bridge("vision")
    with nullcontext() if trains else torch.no_grad():
        for number in range(counts[ctx.rank]):
            if bridge.is_sender:
                crossed = bridge(encoded(weight_of(number), bridge.source.lanes), spec=SPEC)
            else:
                crossed = bridge(spec=SPEC)
                found.append(torch.equal(crossed, encoded(weight_of(number), bridge.destination.lanes)))
            if trains:
                crossed.sum().backward()


def test_one_batch_less_or_more_on_one_rank_fails_on_all_its_peers():
    """The other ranks, whose batches are all as expected, may have left by then; or they report the same failure."""
    worlds = [(TWO, (3, 4), ()), (TWO, (4, 3), ()), (TWO_ENCODERS, (3, 2, 3), (0,)), (TWO_ENCODERS, (3, 4, 3), (0,))]
    worlds += [(TWO_LANGUAGE_LANES, (3, 3, 2), (1,)), (TWO_LANGUAGE_LANES, (3, 3, 4), (1,))]
    cases = [(*world, trains) for world in worlds for trains in (True, False)]
    jobs = [Job(unequal_batches, topology, (counts, trains)) for topology, counts, _, trains in cases]
    for (_, counts, others, _), outcomes in zip(cases, run_jobs(*jobs), strict=True):
        failed = [own.errors for rank, own in enumerate(outcomes) if rank not in others or own.errors]
        assert len(failed) >= 2
        assert all("the bridge vision" in errors and f"batch {min(counts)}" in errors for errors in failed), failed
        assert all(all(own.found) for own in outcomes)
        assert max(own.seconds for own in outcomes) < QUICK_S


# torch.compile


def compiled(found, sizes):
    bridge = mimo_role.current().bridge("vision")
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def model(count):
        spec = ActivationSpec.of(count, (3,), torch.float64)
        if bridge.is_sender:
            return bridge((weight * 2).expand(count, 3) + 1, spec=spec)
        return (bridge(spec=spec) * weight).square().sum()

    call = torch.compile(model, backend="aot_eager", fullgraph=False)
    for count in sizes:
        weight.grad = None
        call(count).backward()
        found.append(weight.grad.tolist())


def test_a_compiled_caller_is_exact_with_batches_of_changing_sizes():
    sizes = (2, 4, 3, 2)
    ((vision, language),) = run_jobs(Job(compiled, TWO, (sizes,)))
    assert (vision.errors, language.errors) == ("", "")
    assert vision.found == [[2.0 * count * 2 * 3] * 3 for count in sizes]
    assert language.found == [[2.0 * count * 9] * 3 for count in sizes]


# Processes that exit, and forked ones


def meets_a_death(module, when):
    """The rank of `module` is a child process, which is killed before or after it has sent a batch."""
    rank = int(os.environ["RANK"])
    dies = rank == list(TWO.grids).index(module)
    if dies and (child := os.fork()):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    mimo_role.init(TWO, backend="gloo", timeout_s=30)
    bridge = mimo_role.current().bridge("vision")
    began = time.monotonic()
    try:
        for number in range(2):
            if dies and (number, when) == (1, "before its batch"):
                os._exit(7)
            crossed = bridge(encoded(weight_of(number)), spec=SPEC) if bridge.is_sender else bridge(spec=SPEC)
            if dies and (number, when) == (1, "before its backward"):
                os._exit(7)
            crossed.sum().backward()
            del crossed
            if dies:
                bridge.wait()  # all that it has sent has arrived
        dist.barrier()
    except BridgeError as error:
        return str(error), time.monotonic() - began
    return "no error", 0.0


@pytest.mark.parametrize(
    ("module", "when"), [("vision", "before its batch"), ("language", "before its batch"), ("language", "before its backward")]
)
def test_a_peer_that_dies_is_named_by_the_rank_that_waits_for_it(module, when):
    found = run_ranks(meets_a_death, 2, module, when, timeout_s=50)
    dead = list(TWO.grids).index(module)
    assert found[dead] == 7
    error, seconds = found[1 - dead]
    assert "batch 1" in error
    assert f"rank {dead} ({module} lane 0)" in error
    assert "connection closed by peer" in error.lower()  # as the bridge or gloo, whichever notices first, has it
    assert seconds < QUICK_S


def forks(found, side):
    """A child, such as a worker of a data loader, drops the graph that it has inherited; its parent continues."""
    bridge = mimo_role.current().bridge("vision")
    for number in range(3):
        weight = weight_of(number)
        crossed = bridge(encoded(weight), spec=SPEC) if bridge.is_sender else bridge(spec=SPEC)
        loss = crossed if bridge.is_sender else sum(losses_of(crossed, number))
        if (side == "sender") == bridge.is_sender:
            if (child := os.fork()) == 0:
                del crossed, loss
                gc.collect()
                try:
                    bridge(encoded(weight), spec=SPEC) if bridge.is_sender else bridge(spec=SPEC)
                except BridgeError as error:
                    os._exit(0 if "forked from a rank has no bridges" in str(error) else 1)
                os._exit(2)
            found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        loss.backward()
        if bridge.is_sender:
            found.append(weight.grad.tolist())


def test_a_forked_child_that_drops_the_graph_does_not_disturb_its_parent():
    from_sender, from_receiver = run_jobs(Job(forks, TWO, ("sender",)), Job(forks, TWO, ("receiver",)))
    assert [own.errors for own in (*from_sender, *from_receiver)] == [""] * 4
    gradients = [gradient_of(number) for number in range(3)]
    assert from_sender[0].found == [value for own in gradients for value in (0, own)]
    assert from_receiver[0].found == gradients
    assert from_receiver[1].found == [0, 0, 0]


# Gradients that are sent although the embeddings are still referenced


class MeetsInStep(torch.optim.SGD):
    """An optimizer whose step is a collective, as that of a sharded one."""

    def step(self, closure=None):
        dist.barrier()
        super().step(closure)
        dist.barrier()


def held_until_a_collective(found, optimizer):
    bridge = mimo_role.current().bridge("vision")
    weight = weight_of(1)
    if bridge.is_sender:
        bridge(encoded(weight), spec=SPEC).backward()
        found.append(weight.grad.tolist())
        dist.barrier()
        if optimizer is MeetsInStep:
            dist.barrier()
        return
    embeddings = bridge(spec=SPEC)
    sum(losses_of(embeddings, 1)).backward()
    if optimizer is not None:
        weight.grad = torch.ones_like(weight)
        optimizer([weight], lr=0.1).step()
        found.append([not bridge.ledger.gradients.started, weight.tolist()])
    if optimizer is not MeetsInStep:
        dist.barrier()
    found.append(embeddings.tolist())


def test_gradients_are_sent_while_the_embeddings_are_referenced():
    optimizers = [torch.optim.SGD, MeetsInStep, None]
    for optimizer, (sender, receiver) in zip(
        optimizers,
        run_after_imports(*(Job(held_until_a_collective, TWO, (optimizer,)) for optimizer in optimizers)),
        strict=True,
    ):
        assert (sender.errors, receiver.errors) == ("", "")
        assert sender.found == [gradient_of(1)]
        stepped = [] if optimizer is None else [[True, [value - 0.1 for value in weight_of(1).tolist()]]]
        assert receiver.found == [*stepped, encoded(weight_of(1)).tolist()]
        assert max(sender.seconds, receiver.seconds) < QUICK_S


def freed_during_a_step(found):
    bridge = mimo_role.current().bridge("vision")
    weight = weight_of(1)
    if bridge.is_sender:
        bridge(encoded(weight), spec=SPEC).backward()
        return
    bridge(spec=SPEC).sum().backward()
    mimo_role.shutdown()
    ledger = weakref.ref(bridge.ledger)
    del bridge
    hooks = [register_optimizer_step_pre_hook(work) for work in (lambda *_: gc.collect() and None, lambda *_: None)]
    assert ledger() is not None
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()
    for hook in hooks:
        hook.remove()
    found += [ledger() is None, weight.tolist()]


def test_bridges_may_be_freed_during_an_optimizers_step():
    ((sender, receiver),) = run_jobs(Job(freed_during_a_step, TWO))
    assert (sender.errors, receiver.errors) == ("", "")
    assert receiver.found == [True, [value - 0.5 for value in weight_of(1).tolist()]]
