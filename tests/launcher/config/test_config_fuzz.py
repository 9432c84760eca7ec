"""Whatever a config holds, `plan` ends in time with exit code 0, or with 2 and one message; never with a traceback.

`MIMO_FUZZ_SEED` repeats a run; the seed is printed before each test and in the message of a failing case.
"""

import contextlib
import copy
import io
import json
import os
import random
import re
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from launcher.cli import main
from launcher.errors import ConfigError
from launcher.plan.plan_file import load_plan

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(600)  # a case is bounded by itself; all of them take as long as the machine is busy
SEED = int(os.environ.get("MIMO_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
REPEAT = f"MIMO_FUZZ_SEED={SEED} python -m pytest tests/launcher/config/test_config_fuzz.py"

LONGEST = 100_000
"""Characters of a repeated part of a config."""
CASE_S = 20
"""On the CPU; far more than the slowest case takes."""
CASE_BYTES = 1 << 30
"""More than that in a test's process, and its case fails."""


def fuzz(cases):
    """A test of so many cases, the same ones for the same seed."""
    configured = settings(max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    return lambda test: seed(SEED)(configured(test))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The folder of the config and its script, in which at most `CASE_BYTES` more than before can be taken."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "train.py").write_text("raise SystemExit(1)\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + CASE_BYTES, hard))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        yield folder
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(autouse=True)
def _print_seed():
    print(REPEAT)


# A config as a tree: a scalar is text as it stands in YAML, a collection ("map" or "list", [[key, value], ...]).


def tree_of(value):
    if isinstance(value, dict):
        return ("map", [[key, tree_of(item)] for key, item in value.items()])
    if isinstance(value, list):
        return ("list", [["", tree_of(item)] for item in value])
    return str(value)


def text_of(tree):
    if isinstance(tree, str):
        return tree
    kind, items = tree
    if kind == "list":
        return f"[{', '.join(text_of(item) for _, item in items)}]"
    return f"{{{', '.join(f'{key}: {text_of(item)}' for key, item in items)}}}"


def document_of(tree):
    """Top-level keys on lines of their own, as people write them."""
    return "".join(f"{key}: {text_of(item)}\n" for key, item in tree[1])


def places_of(tree):
    """Where the parts of a tree stand: the items of a collection, and an index into them."""
    if not isinstance(tree, str):
        for index, (_, item) in enumerate(tree[1]):
            yield tree[1], index
            yield from places_of(item)


BASES = [
    {
        "name": "job",
        "layout": "non_colocated",
        "modules": {"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}},
        "entry": {"script": "train.py"},
    },
    {
        "name": "job",
        "layout": "non_colocated",
        "modules": {
            "vision": {"tp": 1, "dp": 2, "pool": "encoders", "env": {"A": "b"}},
            "audio": {"dp": 2, "colocate_with": "vision", "groups": {"families": "megatron", "timeout_s": 120}},
            "language": {"tp": 2, "pp": 2, "dp": "auto", "ep": 2, "pool": "llm", "order": ["tp", "cp", "dp", "pp"]},
        },
        "pools": {
            "encoders": {"nodes": 1, "procs_per_node": 2, "resources": {"cpu": 16, "gpu": 8, "memory_mb": 64000}},
            "llm": {
                "nodes": 2,
                "procs_per_node": 4,
                "slurm": {"partition": "h100", "gres": '"gpu:4"', "exclusive": "true", "time": "12:30:00"},
            },
        },
        "entry": {"command": ["sh", "-c"]},
        "args": ["--steps", '"300"', "0042"],
        "runtime": {"backend": "gloo", "timeout_s": 600, "start_method": "spawn", "join": "script", "max_restarts": 0},
        "env": {"NCCL_DEBUG": "WARN"},
        "run_dir": "runs/${name}",
    },
    {
        "name": "${oc.env:HOME}",
        "layout": "colocated",
        "modules": {
            "vision": {"dp": 8, "ranks": '"0-7"'},
            "language": {
                "tp": 2,
                "dp": 4,
                "expt_tp": 2,
                "groups": {"families": [["dp", "cp"], ["tp"]], "is_high_priority_stream": "true", "nccl": {"max_ctas": 8}},
            },
        },
        "entry": {"module": "json.tool"},
        "runtime": {"grace_s": 10, "warning_s": 120},
    },
]


def listed(text):
    """The pieces of a table."""
    return [piece for line in text.strip("\n").splitlines() for piece in line.split(" ¦ ")]


SIZE = re.compile("tp|cp|dp|pp|ep|expt_tp|nodes|procs_per_node")
KEYS = sorted({text for base in BASES for text in re.findall(r"[\w]+(?=:)", text_of(tree_of(base)))})

LONG = ["x" * 5000, "0x" + "f" * 5000, "9" * 5000, '"gpu:' + "9" * 900 + '"']

ODD_KEYS = (
    listed(r"""
1 ¦ 1.5 ¦ true ¦ null ¦ "" ¦ ~ ¦ ? [a] ¦ ? {a: b} ¦ << ¦ = ¦ !!binary aGk ¦ "a\nb" ¦ "\0" ¦ été ¦ 名 ¦ "a.b" ¦ "a[0]"
${name} ¦ '${' ¦ language ¦ vision ¦ order ¦ ranks ¦ dp ¦ RANK ¦ "\e[31m" ¦ - ¦ __class__ ¦ keys ¦ items ¦ _content
.nan ¦ 2001-01-01 ¦ *a ¦ &a k ¦ nodes ¦ no-requeue
""")
    + LONG[:3]
)

ODD_VALUES = (
    listed(r"""
null ¦ ~ ¦ true ¦ no ¦ 0 ¦ 1 ¦ -1 ¦ 3 ¦ 8 ¦ 1000000 ¦ 999999999 ¦ 1000000000 ¦ 1000000000000
10000000000000000000000000000000000000000 ¦ 1e300 ¦ 0.5 ¦ 1.0 ¦ .nan ¦ .inf ¦ -.inf ¦ -0.0 ¦ 1e-320 ¦ 0o17 ¦ 1_000
12:30:00 ¦ "" ¦ auto ¦ default ¦ megatron ¦ language ¦ vision ¦ audio ¦ llm ¦ nccl ¦ script ¦ launcher ¦ spawn ¦ ???
'???' ¦ "0-7" ¦ "7-0" ¦ "3" ¦ "0-999999999" ¦ "-1-3" ¦ "٣" ¦ " 0-1 " ¦ 0-7 ¦ "0-7,9" ¦ "1-2-3" ¦ train.py ¦ / ¦ .. ¦ .
${name} ¦ ${env} ¦ ${modules} ¦ ${modules.vision} ¦ ${modules.vision.dp} ¦ ${args[0]} ¦ ${run_dir} ¦ ${} ¦ '${'
${..dp} ¦ ${.} ¦ ${oc.env:HOME} ¦ ${oc.env:NO_SUCH} ¦ ${oc.env:NO_SUCH,7} ¦ ${oc.decode:'[1, 2]'} ¦ ${nope:1}
${oc.create:{a: 1}} ¦ ${oc.dict.keys:modules} ¦ ${oc.dict.values:modules} ¦ ${oc.select:name,x} ¦ ${${name}}
${oc.decode:${name}} ¦ 'a${name}b${layout}' ¦ '\${name}' ¦ '${oc.env:${name}}' ¦ '${' '}' ¦ ${oc.deprecated:name} ¦ []
{} ¦ [[]] ¦ [{}] ¦ {a: 1} ¦ [a, 1, null] ¦ [[dp, cp], [dp, pp]] ¦ [pp, dp, cp, tp] ¦ [tp, tp, tp, tp] ¦ [[ep]]
[[expt_dp, tp]] ¦ [pp, tp, cp, dp] ¦ {dp: auto} ¦ {script: train.py} ¦ {module: os} ¦ {command: [sh]} ¦ !!bool x
!!int '' ¦ !!float '' ¦ !!timestamp x ¦ !!binary aGk= ¦ !!binary '*' ¦ !!set {a} ¦ !!omap [a: 1]
!!python/object:os.system {} ¦ !!str 3 ¦ !!null x ¦ !!map [a] ¦ !!seq {a: 1} ¦ !mine x ¦ !!int 99:99 ¦ 2001-01-01
2001-01-01 00:00:00 +99:99 ¦ &a [*a] ¦ &a {b: *a} ¦ *a ¦ &a x ¦ *nope ¦ @x ¦ `x ¦ %x ¦ - x ¦ | ¦ ' ¦ " ¦ # ¦ "a\nb"
"\0" ¦ "\e[31m" ¦ "\x85\u2028" ¦ "\ud800" ¦ "\U0001F600" ¦ 名前 ¦ ~nobody-here/x ¦ a/../b ¦ gpu ¦ "gpu:h100:4"
"B:USR1@60" ¦ 0042 ¦ 1.50 ¦ __main__ ¦ a.b.c ¦ .a ¦ sys ¦ -x
""")
    + LONG
)

DEPTHS = (12, 40, 200, 20000)
NESTED = [pair[0] * depth + pair[1] * depth for pair in (("[", "]"), ("{a: ", "}")) for depth in DEPTHS]

# Quoted, as a brace ends a plain scalar inside a collection.
values = st.sampled_from([f'"{value}"' if value.startswith("${") else value for value in (*ODD_VALUES, *NESTED)])
keys = st.sampled_from([*KEYS, *ODD_KEYS])
sizes = st.sampled_from(["1", "2", "2", "3", "4", "6", "8", "16", "97", "1024", "4000", "1048577", "999999999", "auto"])
WAYS = ["value"] * 3 + ["size"] * 3 + ["key", "new", "drop", "double", "list", "map", "swap", "copy", "inside", "alias", "many"]


def change(draw, tree):
    """Change one part of a tree."""
    places = list(places_of(tree))
    way = draw(st.sampled_from(WAYS))
    if way == "size":
        places = [(items, index) for items, index in places if SIZE.fullmatch(items[index][0])]
    if not places:
        return
    items, index = draw(st.sampled_from(places))
    item = items[index]
    match way:
        case "drop":
            del items[index]
        case "double":
            items.insert(draw(st.integers(0, len(items))), copy.deepcopy(item))
        case "many":
            # A change of a change may repeat what is repeated already; a plan takes 20 s for a text of 1 MB.
            most = max(1, LONGEST // len(text_of(item[1])))
            count = min(most, draw(st.sampled_from([1, 9, 99])))
            items += [[f"{item[0]}{number}", copy.deepcopy(item[1])] for number in range(count)]
        case "key":
            item[0] = draw(keys)
        case "new":
            items.append([draw(keys), draw(values)])
        case "swap":
            others, other = draw(st.sampled_from(places))
            item[1], others[other][1] = copy.deepcopy(others[other][1]), copy.deepcopy(item[1])
        case _:
            item[1] = changed(draw, way, item[1], places)


def changed(draw, way, value, places):
    """A new value for one part of a tree."""
    match way:
        case "size":
            return draw(sizes)
        case "list":
            return ("list", [["", value]])
        case "map":
            return ("map", [[draw(keys), value]])
        case "alias":
            return f"&a {text_of(value)}"
        case "copy" | "inside":
            items, index = draw(st.sampled_from(places))
            found = copy.deepcopy(items[index][1])
            return found if way == "copy" or isinstance(value, str) else (value[0], [*value[1], [draw(keys), found]])
    return draw(values)


@st.composite
def documents(draw):
    tree = tree_of(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.sampled_from([1, 1, 2, 2, 3, 5]))):
        change(draw, tree)
    return document_of(tree)


def written_configs():
    """The configs of the examples and of the documents."""
    texts = [path.read_text() for path in sorted((ROOT / "examples").glob("*/*.yaml"))]
    for path in (ROOT / "README.md", ROOT / "docs" / "reference" / "config.md"):
        texts += re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)
    return [re.sub(r"script: [\w./]+", "script: train.py", text).encode() for text in texts if "entry:" in text]


SNIPPETS = [
    snippet.encode().decode("unicode_escape").encode("latin-1")
    for snippet in listed(r"""
\t ¦ \x00 ¦ \xff ¦ \xef\xbb\xbf ¦ \xed\xa0\x80 ¦ \r ¦ \r\n ¦ \n ¦   ¦    ¦ : ¦ :  ¦ -  ¦ # ¦ ' ¦ " ¦ { ¦ } ¦ [ ¦ ] ¦ ,
&a  ¦ *a ¦ !!int  ¦ !!bool  ¦ |\n ¦ >\n ¦ % ¦ @ ¦ ---\n ¦ ...\n ¦ ?  ¦ <<:  ¦ ${ ¦ } ¦ ${name} ¦ \\ ¦ \xc2\x85
\xe2\x80\xa8 ¦ \x1b[31m ¦ \xf0\x9f\x98\x80 ¦ = ¦ ~ ¦ 0 ¦ - ¦ . ¦ x: 1\n
""")
]
SNIPPETS += [b"9" * 40, b"x" * 20000, b"[" * 300, b"[" * 20000, b"a: " * 300, b"{a: " * 20000, b"- " * 20000]

edits = st.tuples(
    st.sampled_from(["cut", "insert", "insert", "replace", "double", "move"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 30),
    st.sampled_from(SNIPPETS),
)


def edited(data, changes):
    for way, share, length, snippet in changes:
        at = int(share * (len(data) + 1))
        part = data[at : at + length]
        new = {"cut": b"", "insert": snippet + part, "replace": snippet, "double": part * 2, "move": part[::-1]}[way]
        data = data[:at] + new + data[at + length :]
    return data


texts = st.builds(edited, st.sampled_from(written_configs()), st.lists(edits, min_size=1, max_size=4))

PATHS = listed(r"""
name ¦ layout ¦ modules ¦ modules.vision ¦ modules.vision.dp ¦ modules.vision.tp ¦ modules.language.dp ¦ entry
modules.language ¦ modules.vision.groups.families ¦ modules.vision.env.A ¦ pools ¦ pools.a ¦ pools.a.slurm.mem
pools.a.procs_per_node ¦ pools.a.nodes ¦ args ¦ args[0] ¦ args[9] ¦ args.0 ¦ entry.script ¦ entry.command ¦ run_dir
runtime.timeout_s ¦ env ¦ env.A ¦ modules[vision] ¦ modules[vision].dp ¦ modules.vision.ranks ¦ modules.new.dp ¦ a
a.b.c ¦ . ¦ .. ¦ a..b ¦ [ ¦ ] ¦ [] ¦ a[ ¦ a] ¦ a[0] ¦ a[b][c] ¦ 0 ¦ -1 ¦ + ¦ ~ ¦ name.x ¦ name[0] ¦ ${name}
modules.${name} ¦ été ¦ 名 ¦ a b ¦ 'a' ¦ a\ ¦ a\.b ¦ modules.vision. ¦ .modules ¦ = ¦ @x ¦ modules.vision.order ¦ nodes
modules.vision.colocate_with
""")
PATHS += [path for path in PATHS if re.match("name|layout|modules|pools|args|entry|run", path)] * 2
PATHS += ["", "x" * 5000, "a." * 60 + "a", "a." * 200 + "a", "a" + "[0]" * 90, "\udcff", "\x1b[31m", "a\nb"]

words = st.builds("{}{}{}".format, st.sampled_from(PATHS), st.sampled_from(["="] * 9 + ["", "=="]), st.one_of(values, sizes))
overrides = st.one_of(st.tuples(words), st.lists(words, min_size=1, max_size=3))


class TooSlowError(BaseException):
    """Not an `Exception`: nothing takes it for one of its own, and Hypothesis does not look for a smaller case, as slow."""


@contextlib.contextmanager
def bounded(case):
    """Within the time of a case; whatever goes wrong in it names the case, and how to repeat the run."""
    named = f"\ncase: {repr(case)[:3000]}\nrepeat: {REPEAT}"

    def end(*_):
        raise TooSlowError(f"more than {CASE_S} s{named}")

    # Time on the CPU: that of the clock depends on what else the machine does, and its timer is pytest-timeout's.
    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, CASE_S)
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}{named}") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check(data, words=(), *, as_json):
    """Plan a config and judge how that ends."""
    Path("job.yaml").write_bytes(data)
    out, err, by_argparse = io.StringIO(), io.StringIO(), False
    with bounded((data, words)):
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(["plan", "job.yaml", *words, *(["--json"] if as_json else [])])
        except SystemExit as ending:
            code, by_argparse = ending.code, True
        judge(code, out.getvalue(), err.getvalue(), as_json=as_json, by_argparse=by_argparse)


def judge(code, out, err, *, as_json, by_argparse):
    assert code in (0, 2)
    if by_argparse:
        assert code == 0
        assert out.startswith("usage: mimo-launch")
        return
    if code == 0:
        assert err == ""
        assert json.loads(out)["ranks"] if as_json else out.strip()
        return
    assert out == ""
    message = err.removesuffix("\n")
    assert message.startswith("mimo-launch: ")
    assert message.removeprefix("mimo-launch: ").strip()
    assert "Traceback" not in message
    assert message.isprintable(), message


@fuzz(2500)
@given(documents(), st.booleans())
def test_a_config_of_any_structure_is_planned_or_refused(document, as_json):
    check(document.encode(), as_json=as_json)


@fuzz(5000)
@given(texts, st.booleans())
def test_a_config_of_any_bytes_is_planned_or_refused(data, as_json):
    check(data, as_json=as_json)


@fuzz(700)
@given(st.sampled_from(BASES), overrides, st.booleans())
def test_any_overrides_are_applied_or_refused(base, words, as_json):
    check(document_of(tree_of(base)).encode(), [word for word in words if "\0" not in word], as_json=as_json)


@pytest.fixture(scope="module")
def plan_data(folder):
    from launcher.config.loader import load
    from launcher.plan.planner import make_plan

    path = folder / "good.yaml"
    path.write_text(document_of(tree_of(BASES[1])))
    config, _ = load(path, [])
    return make_plan(config, path, []).to_json().encode()


@fuzz(2000)
@given(changes=st.lists(edits, min_size=1, max_size=3))
def test_a_plan_of_any_bytes_is_loaded_or_refused(plan_data, changes):
    path = Path("plan.json")
    path.write_bytes(edited(plan_data, changes))
    with bounded(path.read_bytes()), contextlib.suppress(ConfigError):
        plan, _ = load_plan(path)
        assert plan.digest
