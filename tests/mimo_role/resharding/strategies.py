"""Hypothesis strategies for bridges and batches, and an independent computation of the tokens that each rank holds."""

from hypothesis import strategies as st

from mimo_role import Topology
from mimo_role.resharding.endpoint import Endpoint
from mimo_role.resharding.samples import Samples, TokenSplit, lane_samples

splits = st.builds(TokenSplit, cp_order=st.sampled_from(["contiguous", "zigzag"]), sequence_parallel=st.booleans())


@st.composite
def topologies(draw, colocated=None, max_ranks=None):
    """One modality module and the language module, with any tp, cp, gtp_remat, dp and pp."""
    colocated = draw(st.booleans()) if colocated is None else colocated
    if colocated:
        world = draw(st.sampled_from([size for size in (1, 2, 4, 6, 8, 12) if size <= (max_ranks or 12)]))
        modules = {name: draw(_factors(world)) for name in ("vision", "language")}
    else:
        most = max_ranks or 72
        first = draw(_sizes(most - 1))
        used = first["tp"] * first["cp"] * first["dp"] * first["pp"]
        modules = {"vision": first, "language": draw(_sizes(most - used))}
    for sizes in modules.values():
        axes = ["tp", "cp", "dp", "pp"]
        if sizes["dp"] % 2 == 0 and draw(st.booleans()):
            sizes.update(dp=sizes["dp"] // 2, gtp_remat=2)
            axes.append("gtp_remat")
        sizes["order"] = draw(st.just(axes) | st.permutations(axes))
    return Topology.from_modules(modules, layout="colocated" if colocated else "non_colocated")


@st.composite
def endpoints(draw, colocated=None):
    """The two ends of a bridge and the size of their world."""
    topology = draw(topologies(colocated))
    vision, language = topology.grids["vision"], topology.grids["language"]
    source = Endpoint("vision", vision, vision.axis_size("pp") - 1, draw(splits))
    return source, Endpoint("language", language, 0, draw(splits)), topology.world_size


@st.composite
def batches(draw, source, destination):
    """A batch with uneven tokens, lanes by hand, lanes without samples, and places in longer sequences."""
    count = draw(st.integers(0, 7))
    each = st.integers(0, 9)
    tokens = draw(st.one_of(each, st.lists(each, min_size=count, max_size=count).map(tuple)))

    def lanes(end):
        return st.none() | st.lists(st.integers(0, end.lanes - 1), min_size=count, max_size=count).map(tuple)

    places = None
    if draw(st.booleans()):
        of = [tokens if isinstance(tokens, int) else tokens[sample] for sample in range(count)]
        starts = [draw(st.integers(0, 5)) for _ in of]
        places = tuple((start, start + size + draw(st.integers(0, 5))) for start, size in zip(starts, of, strict=True))
    return Samples(count, tokens, draw(lanes(source)), draw(lanes(destination)), places)


def held_by(side, rank, *, as_source):
    """The (sample, token) pairs of a rank's tensor in order, found token by token."""
    end, samples = side.endpoint, side.samples
    place = end.place_of(rank)
    if place is None:
        return []
    assigned = samples.source_lanes if as_source else samples.destination_lanes
    if assigned is None:
        own = list(lane_samples(samples.count, end.lanes, place.lane))
    else:
        own = [sample for sample, lane in enumerate(assigned) if lane == place.lane]
    held = []
    for sample in own:
        count = samples.tokens_of(sample)
        start, length = samples.places[sample] if samples.places is not None and not as_source else (0, count)
        local = [token for token in range(length) if _cp_owner(token, length, end) == place.cp]
        if end.split.sequence_parallel:
            local = [token for at, token in enumerate(local) if _part_of(at, len(local), end.grid.axis_size("tp")) == place.tp]
        held += [(sample, token - start) for token in local if 0 <= token - start < count]
    return held


def _cp_owner(token, length, end):
    size = end.grid.axis_size("cp")
    if end.split.cp_order == "contiguous":
        return _part_of(token, length, size)
    chunk = _part_of(token, length, 2 * size)
    return min(chunk, 2 * size - 1 - chunk)


def _part_of(at, length, parts):
    return next(part for part in range(parts) if length * part // parts <= at < length * (part + 1) // parts)


@st.composite
def _sizes(draw, most):
    sizes = {}
    for axis, largest in draw(st.permutations([("tp", 4), ("cp", 3), ("dp", 5), ("pp", 2)])):
        sizes[axis] = draw(st.integers(1, max(1, min(largest, most))))
        most //= sizes[axis]
    return sizes


@st.composite
def _factors(draw, world):
    sizes = {}
    for axis in draw(st.permutations(["tp", "cp", "pp"])):
        sizes[axis] = draw(st.sampled_from([size for size in (1, 2, 3, 4) if world % size == 0]))
        world //= sizes[axis]
    return {**sizes, "dp": world}
