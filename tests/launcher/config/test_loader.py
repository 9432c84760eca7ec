"""Source text travels with a value: arguments, variables and options arrive as they were typed, whatever way they take."""

import pytest
from hypothesis import given, settings

from launcher.config.loader import load
from launcher.errors import ConfigError
from tests.launcher.config.scalars import scalars

HEAD = {
    "name": "job",
    "layout": "colocated",
    "modules": "{vision: {dp: 2}, language: {dp: 0b10}}",
    "entry": "{script: train.py}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("typed")


def load_text(folder, text, *overrides):
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, list(overrides))


def loaded(folder, *overrides, **keys):
    return load_text(folder, "".join(f"{key}: {value}\n" for key, value in (HEAD | keys).items()), *overrides)


def pool(options):
    return f"{{a: {{procs_per_node: 2, slurm: {options}}}}}"


FROM_A = "['${env.A}']"
ROUTES = {
    "directly": {"env": "{A: @}", "args": "[@]"},
    "in block style": {"env": "\n  A: @", "args": "\n  - @"},
    "by an alias": {"env": "{A: &a @}", "args": "[*a]"},
    "by an alias of a list": {"pools": pool("{A: &list [@]}"), "env": "{A: @}", "args": "*list"},
    "by a merge key": {"pools": pool("&options {A: @}"), "env": "{<<: *options, B: x}", "args": FROM_A},
    "by merge keys": {"pools": pool("&a {A: @}"), "env": "{<<: [{B: x}, *a]}", "args": FROM_A},
    "by interpolation": {"env": "{A: @}", "args": FROM_A},
    "by interpolation of an interpolation": {"env": "{B: @, A: '${.B}'}", "args": FROM_A},
    "by a nested interpolation": {"env": "{A: '${.job}', job: @}", "args": "['${env.${name}}']"},
    "by interpolation of a mapping": {"pools": pool("{A: @}"), "env": "${pools.a.slurm}", "args": FROM_A},
    "by interpolation of a list": {"pools": pool("{A: [@]}"), "env": "{A: @}", "args": "${pools.a.slurm.A}"},
    "by oc.select": {"env": "{A: @}", "args": "['${oc.select:env.A}']"},
    "by oc.dict.values": {"env": "{A: @}", "args": "${oc.dict.values:env}"},
    "by overrides": {"env": "{A: x}", "args": "[y]", "overrides": ["env.A=@", "args=[@]"]},
    "by an override of a mapping": {"env": "{A: x}", "args": FROM_A, "overrides": ["env={A: @}"]},
    "by an override that is interpolated": {"env": "{B: x, A: '${.B}'}", "overrides": [f"args={FROM_A}", "env.B=@"]},
    "beside pools=null": {"pools": pool("{}"), "env": "{A: @}", "args": FROM_A, "overrides": ["pools=null"]},
}


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=25, deadline=None)
@given(scalar=scalars)
def test_a_scalar_arrives_as_it_was_typed(folder, route, scalar):
    keys = dict(ROUTES[route])
    overrides = [word.replace("@", scalar) for word in keys.pop("overrides", [])]
    config, saved = loaded(folder, *overrides, **{key: value.replace("@", scalar) for key, value in keys.items()})
    assert config.args == (scalar,)
    assert config.env["A"] == scalar
    again, _ = load_text(folder, saved)
    assert (again.args, again.env, again.pools, again.modules) == (config.args, config.env, config.pools, config.modules)


@settings(max_examples=25, deadline=None)
@given(scalar=scalars)
def test_a_scalar_inside_a_longer_text_is_as_it_was_typed(folder, scalar):
    args = "['--lr=${env.A}', '${env.A}${env.A}', 'x/${oc.select:env.A}/${env.A}']"
    config, _ = loaded(folder, env=f"{{A: {scalar}}}", args=args)
    assert config.args == (f"--lr={scalar}", scalar * 2, f"x/{scalar}/{scalar}")


@settings(max_examples=25, deadline=None)
@given(scalar=scalars)
def test_a_schedulers_option_is_as_it_was_typed(folder, scalar):
    options = f"{{A: {scalar}, B: [x, {scalar}], C: {{D: {scalar}}}}}"
    config, _ = loaded(
        folder, pools=f"{{a: {{procs_per_node: 2, slurm: &s {options}}}, b: {{procs_per_node: 2, slurm: {{<<: *s}}}}}}"
    )
    expected = {"true": True, "false": False}.get(scalar.lower(), scalar)
    for found in config.pools.values():
        assert found.slurm == {"A": expected, "B": ["x", expected], "C": {"D": expected}}


def test_true_false_and_null_are_values_of_a_schedulers_option(folder):
    config, _ = loaded(folder, pools=pool("{A: true, B: TRUE, C: False, D: ~, E: , F: null}"))
    assert config.pools["a"].slurm == {"A": True, "B": True, "C": False, "D": None, "E": None, "F": None}


def test_a_typed_number_is_as_it_was_typed_where_text_is_meant(folder):
    args = "['--dp', '${modules.language.dp}', '--timeout=${runtime.timeout_s}', 'join is ${runtime.join}']"
    config, _ = loaded(folder, args=args, runtime="{timeout_s: 1e2, join: ~}")
    assert config.args == ("--dp", "0b10", "--timeout=1e2", "join is ~")
    assert (config.modules["language"].dp, config.runtime.timeout_s) == (2, 100.0)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('"0042"', "0042"),
        ("'1e-4'", "1e-4"),
        ("!!str 0042", "0042"),
        ("!!str", ""),
        ('!!int "0042"', "0042"),
        ("!!float 3", "3"),
        ("!!timestamp 2025-11-25", "2025-11-25"),
        ('"null"', "null"),
        ('""', ""),
        ("'true'", "true"),
        ("|-\n  0042\n  1e-4", "0042\n1e-4"),
        (">-\n  0042\n  off", "0042 off"),
        ("0042\n  1e-4", "0042 1e-4"),
        ('"\\u00e9\\t"', "é\t"),
        ("\\${A}", "${A}"),
        ("a\\b", "a\\b"),
    ],
)
def test_quotes_tags_and_lines_have_their_meaning_in_yaml(folder, written, text):
    config, saved = loaded(folder, env=f"\n A: {written}".replace("\n  ", "\n    "))
    assert config.env == {"A": text}
    assert load_text(folder, saved)[0].env == {"A": text}


@pytest.mark.parametrize(
    "literal", ["1e-4", "0042", "+1", ".5", "1.", "1_000", "12:00:00", "TRUE", "off", "inf", "nan", "0x10"]
)
def test_a_literal_inside_an_interpolation_is_as_it_was_typed(folder, monkeypatch, literal):
    monkeypatch.delenv("NO_SUCH", raising=False)
    args = f"['${{oc.env:NO_SUCH,{literal}}}', 'x${{oc.select:env.B,{literal}}}', '${{oc.select:env.B, {literal}}}']"
    config, _ = loaded(folder, args=args, env=f"{{A: '${{oc.select:env.${{oc.env:NO_SUCH,B}},{literal}}}'}}")
    assert config.args == (literal, f"x{literal}", literal)
    assert config.env == {"A": literal}


def test_a_list_inside_an_interpolation_is_as_it_was_typed(folder):
    config, _ = loaded(folder, args="\"${oc.create:[1e-3, '1,000', TRUE, 0042, ${env.A}]}\"", env="{A: 1_0}")
    assert config.args == ("1e-3", "1,000", "TRUE", "0042", "1_0")


def test_a_default_inside_an_interpolation_is_a_number_where_one_is_meant(folder):
    config, _ = loaded(folder, runtime="{max_restarts: '${oc.select:env.NO,2}', timeout_s: '${oc.select:env.NO,1e2}'}")
    assert (config.runtime.max_restarts, config.runtime.timeout_s) == (2, 100.0)


@pytest.mark.parametrize("written", ["~", "null", "Null", ""])
def test_null_is_no_text(folder, written):
    for key in ("env.A", "modules.vision.env.A"):
        with pytest.raises(ConfigError, match=f'{key}(={written}|:) (is not|has no value; it is) text; quote it: "{written}"'):
            loaded(folder, f"{key}={written}")


def test_overrides_take_the_texts_of_the_file_with_them(folder):
    config, _ = loaded(folder, "args=['${env.A}', 0042]", "env.B=1e-4", "name=${env.B}", env="{A: 12:00:00}")
    assert (config.args, config.name) == (("12:00:00", "0042"), "1e-4")
    assert config.env == {"A": "12:00:00", "B": "1e-4"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"runtime": "{timeout_s: 5000:00:00}"}, "runtime.timeout_s=5000:00:00 is not a number up to 1e+07"),
        ({"runtime": "{timeout_s: -12:00:00}"}, "runtime.timeout_s=-12:00:00 is not above 0"),
        ({"runtime": "{max_restarts: -0x1}"}, "runtime.max_restarts=-0x1 is less than 0"),
        ({"runtime": "{max_restarts: 1e3}"}, "runtime.max_restarts=1e3 is not a whole number"),
        ({"runtime": "{max_restarts: Off}"}, "runtime.max_restarts=Off is not a whole number"),
        ({"runtime": "{backend: no}"}, "runtime.backend=no is not auto or gloo or nccl"),
        ({"runtime": "0042"}, "runtime=0042 is not a mapping"),
        ({"args": "{A: 0042}"}, "args={'A': 0042} is not a list"),
        ({"args": "[[0042, 1e-4, x]]"}, "args[0]=[0042, 1e-4, 'x'] is not text"),
        ({"modules": "{vision: {tp: -01}, language: {}}"}, "modules.vision.tp=-01 is not a positive number"),
        (
            {"modules": "{vision: {groups: {timeout_s: -1:00}}, language: {}}"},
            "modules.vision.groups.timeout_s=-1:00 is not above 0",
        ),
        ({"modules": "{vision: {groups: {nccl: {max_ctas: 00}}}, language: {}}"}, "groups.nccl.max_ctas=00 is less than 1"),
        ({"modules": "{vision: {dp: " + "9" * 5000 + "}, language: {}}"}, "modules.vision.dp=" + "9" * 57 + "... is not below"),
        ({"pools": "{a: {procs_per_node: -" + "9" * 5000 + "}}"}, "pools.a.procs_per_node=-" + "9" * 56 + "... is not below"),
        ({"pools": "{a: {procs_per_node: 0x" + "f" * 5000 + "}}"}, "pools.a.procs_per_node=0x" + "f" * 55 + "... is not below"),
        ({"runtime": "{timeout_s: '${env.A}'}", "env": "{A: 1e99}"}, "runtime.timeout_s=1e99 is not a number up to 1e+07"),
        ({"env": "{0x10: a}"}, 'env.0x10: the key is not text; quote it: "0x10"'),
    ],
)
def test_a_message_quotes_what_was_written(folder, keys, message):
    with pytest.raises(ConfigError) as caught:
        loaded(folder, **keys)
    assert message in str(caught.value)


def test_a_message_quotes_what_was_written_on_the_command_line(folder):
    with pytest.raises(ConfigError, match=r"command line, runtime.timeout_s=-1:00: runtime.timeout_s=-1:00 is not above 0"):
        loaded(folder, "runtime.timeout_s=-1:00")


def test_all_mistakes_are_in_one_message(folder):
    text = (
        "name: [a]\nmodules: {vision: {tp: two, dp: 0x}, language: {tpp: 1}}\nentry: {script: a}\nruntime: {max_restarts: -1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_text(folder, text, "runtime.grace_s=0", "colour=red")
    path = folder / "job.yaml"
    assert str(caught.value) == (
        f"8 mistakes: (1) command line, colour=red: colour: unknown key; it has name, layout, modules, pools, entry, args, "
        f"runtime, env, run_dir (2) {path}: layout: missing; it is colocated or non_colocated "
        f"(3) {path}: name=['a'] is not text (4) {path}: modules.vision.tp='two' is not a whole number "
        f"(5) {path}: modules.vision.dp='0x' is not a whole number or auto "
        f"(6) {path}: modules.language.tpp: unknown key; did you mean 'tp'? "
        f"(7) {path}: runtime.max_restarts=-1 is less than 0 "
        "(8) command line, runtime.grace_s=0: runtime.grace_s=0 is not above 0"
    )


def test_all_mistakes_that_types_do_not_show_are_in_one_message(folder):
    with pytest.raises(ConfigError) as caught:
        loaded(folder, name="' '", entry="{}", env="{RANK: 1}", modules="{vision: {tp: 0, pool: x}, language: {}}")
    keys = ("name", "modules.vision.tp", "modules.vision.pool", "entry", "env.RANK")
    assert [str(caught.value).count(f"job.yaml: {key}") for key in keys] == [1] * 5


def test_of_many_mistakes_the_first_are_shown(folder):
    with pytest.raises(ConfigError, match=r"^30 mistakes: \(1\) .*\(8\) .*env\.A7=~ is not text; quote it: \"~\" and 22 more$"):
        loaded(folder, env=f"{{{', '.join(f'A{number}: ~' for number in range(30))}}}")
