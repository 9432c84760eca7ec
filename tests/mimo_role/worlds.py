"""Hypothesis strategies for random worlds."""

from hypothesis import assume
from hypothesis import strategies as st

from mimo_role import Topology

AXES = ("tp", "cp", "dp", "pp")


@st.composite
def topologies(draw, max_ranks=None, experts=False):
    """Random worlds: colocated, or language beside modality modules that share ranks or have their own, in chains too."""
    topology = Topology.from_modules(**draw(_colocated(experts) if draw(st.booleans()) else _apart(experts)))
    assume(max_ranks is None or topology.world_size <= max_ranks)
    return topology


@st.composite
def _colocated(draw, experts):
    world = draw(st.sampled_from([1, 2, 4, 6, 8, 12]))
    axes = [(tp, pp, gtp) for tp in (1, 2, 3) for pp in (1, 2) for gtp in (1, 2) if world % (tp * pp * gtp) == 0]
    sizes = [{"tp": tp, "pp": pp, "gtp_remat": gtp, "dp": world // tp // pp // gtp} for tp, pp, gtp in axes]
    modules = {name: draw(st.sampled_from(sizes)) for name in ("vision", "language")}
    if experts:
        modules["language"] = draw(_with_experts(modules["language"]))
    return {"modules": modules, "layout": "colocated"}


@st.composite
def _apart(draw, experts):
    sizes = st.fixed_dictionaries({axis: st.integers(1, 3) for axis in AXES})
    modules = {"vision": draw(sizes)}
    if draw(st.booleans()):
        modules["audio"] = {**modules["vision"], "order": draw(st.permutations(AXES)), "colocate_with": "vision"}
    if draw(st.booleans()):
        modules["depth"] = {**draw(sizes), **draw(st.sampled_from([{}, {"after": "vision"}]))}
    if draw(st.booleans()):
        modules["decoder"] = {**draw(sizes), "after": draw(st.sampled_from(["language", ("vision", "language")]))}
    modules["language"] = {**draw(sizes), "gtp_remat": draw(st.sampled_from([1, 1, 2]))}
    if experts:
        modules["language"] = draw(_with_experts(modules["language"]))
    names = draw(st.permutations(list(modules)))
    return {"modules": {name: modules[name] for name in names}, "layout": "non_colocated"}


@st.composite
def _with_experts(draw, sizes):
    """The same module with expert axes that divide a stage."""
    stage = sizes["tp"] * sizes.get("cp", 1) * sizes["gtp_remat"] * sizes["dp"]
    expt_tp = draw(st.sampled_from([size for size in (1, 2, 3) if stage % size == 0]))
    ep = draw(st.sampled_from([size for size in (1, 2, 3, 4, 6) if stage // expt_tp % size == 0]))
    gtp = draw(st.sampled_from([size for size in (1, 2) if stage // expt_tp // ep % size == 0]))
    return {**sizes, "expt_tp": expt_tp, "ep": ep, "expt_gtp_remat": gtp}
