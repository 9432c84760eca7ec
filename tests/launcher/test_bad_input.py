"""Mistakes in configs and on the command line: exit code 2 and one message that names file, key, value and remedy."""

import pytest

from launcher.cli import main
from launcher.config.loader import load
from launcher.plan.planner import make_plan

GOOD = """\
name: job
layout: non_colocated
modules:
  vision: {dp: 2}
  language: {tp: 2, dp: 2}
entry: {script: train.py}
"""


def good(**replaced):
    """The good config with some top-level keys replaced by other YAML, or left out."""
    lines = dict(
        line.split(":", 1)
        for line in GOOD.replace("modules:\n  vision: {dp: 2}\n  language: {tp: 2, dp: 2}\n", "").splitlines()
    )
    lines["modules"] = " {vision: {dp: 2}, language: {tp: 2, dp: 2}}"
    lines |= {key: None if value is None else f" {value}" for key, value in replaced.items()}
    return "".join(f"{key}:{value}\n" for key, value in lines.items() if value is not None)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit(1)\n")
    return tmp_path / "job.yaml"


CASES = [
    pytest.param("", "job.yaml: empty; a config has at least name, layout, modules and entry", id="empty"),
    pytest.param("# nothing\n", "job.yaml: name: missing", id="only a comment"),
    pytest.param("a: [", "job.yaml, line 2, column 1: not YAML: ", id="not YAML"),
    pytest.param("hello", "job.yaml: not a mapping", id="a word"),
    pytest.param("3", "job.yaml: not a mapping", id="a number"),
    pytest.param("!!binary aGk=", "job.yaml: not a mapping", id="bytes"),
    pytest.param(
        good(name="[" * 20000 + "]" * 20000),
        "job.yaml: lists and mappings nest more than 40 deep; a config needs fewer than ten levels",
        id="lists of lists of lists",
    ),
    pytest.param(good(name="!!bool x"), "not YAML: a value does not fit its tag (!!...); leave", id="a tag for another value"),
    pytest.param(good(name="!!int ''"), "not YAML: a value does not fit its tag", id="a tag for no value"),
    pytest.param(good(name="!!timestamp x"), "not YAML: a value does not fit its tag", id="a time that is none"),
    pytest.param(
        good(pools="{a: {procs_per_node: 0x" + "f" * 5000 + "}}"), "pools.a.procs_per_node=0xffff", id="a number of 20000 bits"
    ),
    pytest.param(
        good(pools="{a: {procs_per_node: 8, slurm: {mem: !!binary aGk=}}}"),
        "pools.a.slurm.mem=b'hi' is not text, a number, true or a list",
        id="bytes for an option",
    ),
    pytest.param(
        good(pools="{a: {procs_per_node: 8, slurm: {mem: [1, null]}}}"),
        "pools.a.slurm.mem: null in a list; items must be text or numbers",
        id="null in an option's list",
    ),
    pytest.param(good(**{'"a\\nb\\e[31m"': "1"}), r"job.yaml: a\nb\x1b[31m: unknown key", id="a line break in a key"),
    pytest.param(
        good(modules='{vision: {colocate_with: "a\\nb"}, language: {}}'),
        r"modules.vision.colocate_with=a\nb is no other module",
        id="a line break in a name",
    ),
    pytest.param("- a\n- b\n", "job.yaml: not a mapping", id="a list"),
    pytest.param(GOOD + "name: again\n", "line 7, column 1: not YAML: found duplicate key name", id="a key twice"),
    pytest.param(
        good(modules="{vision: {}, language: {}, language: {}}"), "found duplicate key language", id="two language modules"
    ),
    pytest.param(good(modulez="{}"), "job.yaml: modulez: unknown key; did you mean 'modules'?", id="misspelt key"),
    pytest.param(good(colour="red"), "job.yaml: colour: unknown key; it has name, layout, modules", id="unknown key"),
    pytest.param(
        good(modules="{vision: {tpp: 2}, language: {}}"),
        "modules.vision.tpp: unknown key; did you mean 'tp'?",
        id="misspelt axis",
    ),
    pytest.param(
        good(modules="{vision: {groups: {familys: megatron}}, language: {}}"),
        "modules.vision.groups.familys: unknown key; did you mean 'families'?",
        id="misspelt group option",
    ),
    pytest.param(
        good(modules="{vision: {groups: {families: all}}, language: {}}"),
        "modules.vision.groups.families='all' is not a list or default or megatron",
        id="unknown families",
    ),
    pytest.param(
        good(modules="{vision: {groups: {families: megatrn}}, language: {}}"),
        "modules.vision.groups.families='megatrn' is not a list or default or megatron; did you mean 'megatron'?",
        id="misspelt families",
    ),
    pytest.param(
        good(modules="{vision: {groups: {families: [[dp, tq]]}}, language: {}}"),
        "job.yaml: modules.vision.groups.families[0]=['dp', 'tq']: module 'vision' has no grid with the axes dp, tq",
        id="families of an axis that there is not",
    ),
    pytest.param(
        good(modules="{vision: {groups: {is_high_priority_stream: 1}}, language: {}}"),
        "modules.vision.groups.is_high_priority_stream=1 is not true or false",
        id="a number for a boolean",
    ),
    pytest.param(
        good(modules="{vision: {groups: {timeout_s: 0}}, language: {}}"),
        "modules.vision.groups.timeout_s=0 is not above 0",
        id="no time for a group",
    ),
    pytest.param(
        good(modules="{vision: {groups: {nccl: {max_ctas: 0}}}, language: {}}"),
        "modules.vision.groups.nccl.max_ctas=0 is less than 1",
        id="no CTAs",
    ),
    pytest.param(
        good(runtime="{preload: [json, my-package]}"),
        "job.yaml: runtime.preload[1]=my-package is not the name of a module, such as package.module",
        id="a module to preload that is no name",
    ),
    pytest.param(good(runtime="{preload: sklearn}"), "runtime.preload='sklearn' is not a list", id="a module for a list"),
    pytest.param(good(name=None), "job.yaml: name: missing", id="no name"),
    pytest.param(good(layout=None), "job.yaml: layout: missing; it is colocated or non_colocated", id="no layout"),
    pytest.param(good(name="'  '"), "job.yaml: name: empty", id="empty name"),
    pytest.param(good(name="null"), 'name=null is not text; quote it: "null"', id="null for text"),
    pytest.param(good(name=""), 'name: has no value; it is text; quote it: ""', id="nothing for text"),
    pytest.param(good(name="[a]"), "name=['a'] is not text", id="a list for text"),
    pytest.param(good(name="???"), "name: Missing mandatory value", id="a value left open"),
    pytest.param(good(layout="colocate"), "layout='colocate' is not colocated or non_colocated; did you mean", id="layout"),
    pytest.param(good(modules="3"), "modules=3 is not a mapping", id="a number for modules"),
    pytest.param(
        good(modules="{vision: 3, language: {}}"), "modules.vision=3 is not a mapping; it has tp, cp", id="a number for one"
    ),
    pytest.param(good(modules="{1: {}, language: {}}"), "modules.1: the key is not text; quote it", id="a number for a name"),
    pytest.param(
        good(modules="{vision: {tp: two}, language: {}}"), "modules.vision.tp='two' is not a whole number", id="text for tp"
    ),
    pytest.param(
        good(modules="{vision: {tp: 2.0}, language: {}}"), "modules.vision.tp=2.0 is not a whole number", id="2.0 for tp"
    ),
    pytest.param(good(modules="{vision: {tp: true}, language: {}}"), "modules.vision.tp=true is not a whole", id="true for tp"),
    pytest.param(good(modules="{vision: {tp: null}, language: {}}"), "modules.vision.tp=null is not a whole", id="null for tp"),
    pytest.param(
        good(modules="{vision: {dp: most}, language: {}}"), "dp='most' is not a whole number or auto", id="text for dp"
    ),
    pytest.param(good(modules="{vision: {tp: -1}, language: {}}"), "modules.vision.tp=-1 is not a positive", id="negative"),
    pytest.param(
        good(modules="{vision: {order: [tp]}, language: {}}"), "modules.vision.order=['tp'] is not an order", id="order"
    ),
    pytest.param(
        good(modules='{vision: {tp: 3, dp: auto, ranks: "0-7"}, language: {}}'),
        "job.yaml: modules.vision.tp=3 does not divide its 8 ranks; use 1, 2, 4 or 8",
        id="tp does not divide",
    ),
    pytest.param(good(modules="{vision: {dp: 2}}"), 'exactly one module is named "language"; found vision', id="no language"),
    pytest.param(
        good(modules='{vision: {dp: 4, ranks: "0-3"}, language: {dp: 4, ranks: "2-5"}}'),
        "ranks 2-5, which overlap",
        id="overlap",
    ),
    pytest.param(
        good(modules='{vision: {dp: 2, ranks: "0-1"}, language: {dp: 2, ranks: "4-5"}}'),
        "ranks 2-3 belong to no",
        id="uncovered",
    ),
    pytest.param(
        good(modules="{vision: {dp: 2}, language: {tp: 4, dp: auto}}", pools="{a: {procs_per_node: 8}}"),
        "modules.language.tp=4 does not divide its 6 ranks",
        id="auto does not come out even",
    ),
    pytest.param(
        good(modules="{vision: {dp: auto}, language: {dp: auto}}", pools="{a: {procs_per_node: 8}}"),
        "both take",
        id="auto twice",
    ),
    pytest.param(
        good(modules="{vision: {dp: auto}, language: {dp: auto}}", layout="colocated"),
        "modules.language.dp=auto on the same ranks as modules.vision.dp=auto; give one of them a number",
        id="auto twice on the same ranks",
    ),
    pytest.param(
        good(modules="{vision: {dp: 4096}, language: {dp: auto}}"), "auto takes this machine", id="auto on a small machine"
    ),
    pytest.param(good(entry=None), "job.yaml: entry: missing", id="no entry"),
    pytest.param(good(entry="{}"), "entry: has exactly one of script, module, command; found none", id="an empty entry"),
    pytest.param(good(entry="{script: train.py, module: a}"), "found script and module", id="two entries"),
    pytest.param(good(entry="{script: ''}"), "entry.script: empty", id="an empty script"),
    pytest.param(good(entry="{script: nope.py}"), "entry.script=nope.py: no such file: ", id="a missing script"),
    pytest.param(good(entry="{script: .}"), "entry.script=.: is a folder", id="a folder for a script"),
    pytest.param(
        good(entry="{module: no.such.module}"), "entry.module=no.such.module: not in the current folder", id="a missing module"
    ),
    pytest.param(good(entry="{module: .a}"), "entry.module=.a: not in the current folder", id="a relative module"),
    pytest.param(good(entry="{command: [no-such-program]}"), "entry.command=no-such-program: no such program", id="no program"),
    pytest.param(good(entry="{command: []}"), "entry.command: empty", id="an empty command"),
    pytest.param(
        good(entry="{command: [bash]}", runtime="{join: launcher}"),
        "runtime.join=launcher cannot join on behalf",
        id="command, join",
    ),
    pytest.param(good(args="--steps"), "args='--steps' is not a list", id="text for args"),
    pytest.param(good(args="[--flag, ~]"), 'args[1]=~ is not text; quote it: "~"', id="null among args"),
    pytest.param(good(runtime="{timeout_s: soon}"), "runtime.timeout_s='soon' is not a number", id="text for seconds"),
    pytest.param(good(runtime="{timeout_s: 0}"), "runtime.timeout_s=0 is not above 0", id="no time"),
    pytest.param(good(runtime="{timeout_s: .inf}"), "runtime.timeout_s=.inf is not a number", id="for ever"),
    pytest.param(good(runtime="{max_restarts: -1}"), "runtime.max_restarts=-1 is less than 0", id="negative restarts"),
    pytest.param(
        good(runtime="{backend: ncl}"), "backend='ncl' is not auto or gloo or nccl; did you mean 'nccl'?", id="backend"
    ),
    pytest.param(
        good(runtime="{numa_binding: nodes}"),
        "numa_binding='nodes' is not node or socket or exclusive or core-complex; did you mean 'node'?",
        id="NUMA binding",
    ),
    pytest.param(good(runtime="null"), "runtime=null is not a mapping", id="null for runtime"),
    pytest.param(good(env="{A: [1]}"), "env.A=[1] is not text", id="a list in env"),
    pytest.param(good(env="{A: Null}"), 'env.A=Null is not text; quote it: "Null"', id="null in env"),
    pytest.param(good(env="{ON: 1}"), 'env.ON: the key is not text; quote it: "ON"', id="a truth value for a name"),
    pytest.param(good(env="{'A=B': x}"), "env.A=B: not a name for an environment variable", id="a name with ="),
    pytest.param(good(env="{RANK: 3}"), "env.RANK: mimo-launch sets this variable itself", id="a variable of ours"),
    pytest.param(good(env="{MASTER_PORT: 1}"), "env.MASTER_PORT: mimo-launch sets this", id="a variable of torchelastic's"),
    pytest.param(good(env="{MIMO_RUN_DIR: x}"), "env.MIMO_RUN_DIR: mimo-launch sets this", id="a variable of the contract"),
    pytest.param(good(modules="${nope}"), "Interpolation key 'nope' not found", id="modules that do not resolve"),
    pytest.param(good(modules="{vision: {dp: 99999999999999999999}, language: {}}"), "is not below 1000000000", id="huge"),
    pytest.param(good(modules='{vision: {ranks: "0-' + "9" * 5000 + '"}, language: {}}'), "is not a range of", id="huge range"),
    pytest.param(
        good(modules="{vision: {dp: 999999999}, language: {}}"),
        "job.yaml: modules.vision.dp=999999999 makes 999999999 ranks; a world has at most 1048576",
        id="a world of all computers",
    ),
    pytest.param(
        good(modules='{vision: {ranks: "0-9999999", dp: auto}, language: {}}'),
        "modules.vision.ranks=0-9999999 makes 10000000 ranks; a world has at most 1048576",
        id="too many ranks by hand",
    ),
    pytest.param(
        good(modules="{vision: {dp: 600000}, language: {dp: 600000}}"),
        "modules: they end at rank 1199999; a world has at most 1048576 ranks",
        id="too large together",
    ),
    pytest.param(
        good(modules="{vision: {dp: 100000}, language: {dp: 100000}}", layout="colocated"),
        "modules: 200000 ranks, those that modules share counted for each; the limit of a plan is 131072",
        id="more ranks than the limit of a plan",
    ),
    pytest.param(good(runtime="{timeout_s: 1e300}"), "is not a number up to 1e+07", id="no end of time"),
    pytest.param(good(runtime="{timeout_s: " + "9" * 400 + "}"), "is not a number up to 1e+07", id="a 400-digit time"),
    pytest.param(good(entry="{script: ~no-such-user/x.py}"), "entry.script=~no-such-user/x.py: ", id="nobody's home"),
    pytest.param(good(entry="{script: " + "a" * 300 + ".py}"), "no such file", id="a script's name of 300 letters"),
    pytest.param(
        good(modules='{vision: {dp: 4, ranks: "0-3"}, language: {dp: 4, ranks: "4-7"}}', layout="colocated"),
        "modules.language.ranks=4-7, but it shares the ranks 0-3 of modules.vision",
        id="colocated on other ranks",
    ),
    pytest.param(good(pools="{}"), "pools: empty", id="no pools"),
    pytest.param(good(pools="{a: {nodes: 1}}"), "pools.a.procs_per_node: missing", id="half a pool"),
    pytest.param(good(pools="{a: {nodes: 0, procs_per_node: 8}}"), "pools.a.nodes=0 is less than 1", id="a pool of nothing"),
    pytest.param(good(pools="{a: {procs_per_node: 4}}"), "room for 4 ranks", id="too small a pool"),
    pytest.param(
        good(modules="{vision: {pool: b}, language: {}}", pools="{a: {procs_per_node: 4}}"),
        "pool=b is not a pool; there is a",
        id="pool",
    ),
    pytest.param(good(name="${nope}"), "job.yaml: name: Interpolation key 'nope' not found", id="an interpolation that fails"),
    pytest.param(good(name="${oc.env:NO_SUCH}"), "name: KeyError raised while resolving interpolation", id="an unset variable"),
    pytest.param(good(name="${"), "name: ", id="half an interpolation"),
    pytest.param(good(name="${name}"), "name: Recursive interpolation detected", id="a circle"),
]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(("text", "message"), CASES)
def test_a_bad_config_is_one_message_and_exit_code_2(job, capsys, command, text, message):
    job.write_text(text)
    code = main([command, "job.yaml"])
    _check(capsys, code, message)
    assert not (job.parent / "runs").exists()


def test_a_config_that_cannot_be_read_is_one_message(job, capsys):
    _check(capsys, main(["plan", "nope.yaml"]), "nope.yaml: no such file")
    _check(capsys, main(["plan", "."]), "cannot be read: Is a directory")
    job.write_bytes(b"name: \xff\xfe")
    _check(capsys, main(["plan", "job.yaml"]), "not UTF-8 text")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modules.vision.tpp=2"], "command line, modules.vision.tpp=2: modules.vision.tpp: unknown key; did you mean 'tp'?"),
        (["modules.visoin.tp=2"], "modules.visoin: no such module; did you mean 'vision'?"),
        (["modules.vision.dp=0"], "command line, modules.vision.dp=0: modules.vision.dp=0 is not a positive number or auto"),
        (["modules.vision.tp=two"], "command line, modules.vision.tp=two: modules.vision.tp='two' is not a whole number"),
        (["train.py"], "'train.py' is not an override; write key.path=value (arguments of the script follow --)"),
        (["=2"], "'=2' is not an override"),
        (["name=[a"], "command line: name=[a: not YAML: did not find expected ',' or ']'"),
        (["args=[a]", "args.foo=x"], "command line"),
        (["modules=[1]"], "does not fit job.yaml"),
        (["[=1"], "command line: [=1: a key is not a path, such as modules.language.tp or args[0]"),
        (["args=" + "[" * 20000], "lists and mappings nest more than 40 deep"),
        (["name=!!bool x"], "command line: name=!!bool x: a value does not fit its tag (!!...); leave the tag out"),
        (["colour=a\nb"], r"command line, colour=a\nb: colour: unknown key"),
        ([r"a\=b=1"], "is not an override"),
        (["x." * 2000 + "x=1"], "...: its lists, mappings or interpolations nest too deeply"),
        (["runtime.backend=ncl"], "command line, runtime.backend=ncl: runtime.backend='ncl' is not auto"),
    ],
)
def test_the_message_for_a_bad_override_names_the_command_line(job, capsys, overrides, message):
    job.write_text(GOOD)
    _check(capsys, main(["plan", "job.yaml", *overrides]), message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["modules.language.dp=50000"], "ranks take about"),
        (["pools={a: {nodes: 3, procs_per_node: 2}}"], "the plan has 3 nodes"),
        (["runtime.backend=nccl"], "this machine has no NVIDIA GPU"),
    ],
)
def test_what_this_machine_cannot_start_is_refused_before_anything_starts(job, capsys, monkeypatch, overrides, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job.write_text(GOOD)
    _check(capsys, main(["run", "job.yaml", *overrides]), message)
    assert not (job.parent / "runs").exists()


def test_an_entry_on_the_command_line_may_interpolate_keys_of_the_file(job, capsys):
    (job.parent / "job.py").write_text("")
    job.write_text(good(entry="{module: json}"))
    assert main(["plan", "job.yaml", "entry.script=${name}.py"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [["plan"], ["rehearse"], ["submit", "--to", "slurm"]])
def test_a_plan_in_place_of_a_config_is_one_mistake(job, capsys, command):
    job.write_text(GOOD)
    config, _ = load(job, [])
    (job.parent / "plan.json").write_text(make_plan(config, job, ()).to_json())
    message = "mimo-launch: plan.json: this is a plan, which `mimo-launch run` takes; give the config that it was made from\n"
    for overrides in ([], ["modules.language.tp=4"]):
        code = main([*command, "plan.json", *overrides])
        printed = capsys.readouterr()
        assert (code, printed.out, printed.err) == (2, "", message)


def test_the_output_of_plan_as_json_in_place_of_a_config_is_one_mistake(job, capsys):
    job.write_text(GOOD)
    assert main(["plan", "job.yaml", "--json"]) == 0
    (job.parent / "printed.json").write_text(capsys.readouterr().out)
    _check(
        capsys, main(["plan", "printed.json"]), "printed.json: this is what `mimo-launch plan --json` prints; give the config"
    )


def test_more_ranks_than_gpus_are_refused(job, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    job.write_text(GOOD)
    _check(capsys, main(["run", "job.yaml"]), "6 ranks, but this machine has 2 GPUs")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND; mimo-launch --help lists the arguments"),
        (["plam"], "unknown command plam; did you mean 'plan'?"),
        (["rnu", "job.yaml"], "unknown command rnu; did you mean 'run'?"),
        (
            ["x", "job.yaml"],
            "there are init, plan, run, rehearse, submit, status, top, logs, trace, report, advise, cancel, schema",
        ),
        (["job.yaml"], "job.yaml is not a command; did you mean 'run job.yaml'?"),
        (["plan"], "CONFIG is missing, and this folder has no job.yaml; mimo-launch plan --help lists the arguments"),
        (["run", "modules.vision.dp=2"], "CONFIG is missing, and this folder has no job.yaml"),
        (["status", "one", "two"], "unexpected argument two; mimo-launch status --help lists the arguments"),
        (
            ["status", "one", "--", "two"],
            "unexpected argument two; arguments of the script follow plan, run, rehearse and submit only",
        ),
        (["logs", "job", "--stage", "x"], "argument --stage: invalid int value: 'x'"),
        (["run", "--dri-run"], "unknown option --dri-run; did you mean --dry-run of mimo-launch submit? (arguments of"),
        (["run", "job.yaml", "-x"], "unknown option -x; arguments of the script follow --"),
        (["plan", "job.yaml", "--colour"], "unknown option --colour; arguments of the script follow --"),
        (["plan", "job.yaml", "--jsn"], "unknown option --jsn; did you mean --json? (arguments of the script follow --)"),
        (["run", "job.yaml", "--verbsoe=1"], "unknown option --verbsoe=1; did you mean --verbose?"),
        (["run", "--no-prefligth", "job.yaml"], "unknown option --no-prefligth; did you mean --no-preflight?"),
        (["submit", "--to", "slurm", "job.yaml", "--dryrun"], "unknown option --dryrun; did you mean --dry-run?"),
        (["rehearse", "--step", "2"], "unknown option --step; did you mean --steps? (arguments of the script follow --)"),
        (["rehearse", "--step=2"], "unknown option --step=2; did you mean --steps?"),
        (["submit", "--dry", "--to", "slurm"], "unknown option --dry; did you mean --dry-run?"),
        (["top", "job", "--int", "3"], "unknown option --int; did you mean --interval?"),
        (["--vers"], "unknown option --vers; did you mean --version?"),
        (["logs", "job", "--folow"], "unknown option --folow; did you mean --follow?"),
        (["--vresion", "plan", "job.yaml"], "unknown option --vresion; did you mean --version?"),
    ],
)
def test_a_wrong_command_line_is_one_message_and_exit_code_2(capsys, words, message):
    _check(capsys, main(words), message)


def _check(capsys, code, message):
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("mimo-launch: ")
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) == 1
