"""Which module may import which, and what must not load torch."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import mimo_role

ROOT = Path(__file__).parents[1]

LAYERS = {
    "launcher": (
        "errors formatting terminal exit_code | outcome host console | command_line config failures | init_project plan steps"
        " | coordination run_dir stragglers | live logs schedulers trace | hangs preflight advise run_report | worker jobs"
        " | agent top | rehearse | commands | cli | __main__"
    ),
    "mimo_role": (
        "errors | host preemption | role monitoring | topology | groups resharding | rank_environ bridge training"
        " | joining rank_store megatron | context | checkpoint data pipeline lifecycle | hf rehearsal | testing"
    ),
}
"""A module imports from its own package and from those further left."""

PRIVATE_NAMES = (
    "agent.deferred_modules agent.elastic_agent agent.torchelastic_private"
    " bridge.backward_pass groups.names groups.creation hf.weights"
    " host.interpreter_exit host.server_process megatron.adapters megatron.cpu megatron.mimo_model"
    " monitoring.collective_waits monitoring.flight_recorder monitoring.torch_groups pipeline.gradient_sync pipeline.profiling"
    " preemption.notice rehearsal.fake_mode rehearsal.fake_tensors rehearsal.fake_values"
    " rehearsal.functional_collectives rehearsal.group_functions"
    " rehearsal.memory_tracker rehearsal.module_paths rehearsal.objects rehearsal.process_group rehearsal.world"
    " training.flat_sums training.gradient_norm"
    " training.random_streams worker.late_variables worker.main_program"
    " worker.numa_binding worker.rank_server"
)
"""Where private names of Python, torch and Megatron-Core stand."""


@cache
def modules():
    """Every module of both packages, parsed, by name."""
    found = {}
    for package in LAYERS:
        for path in sorted({*(ROOT / package).rglob("*.py")} - {*(ROOT / package / "templates").rglob("*.py")}):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports(name):
    """The modules of ours that one imports, anywhere in it."""
    found = set()
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            found.add(target if target in modules() else target.rpartition(".")[0])
    return found & modules().keys() - {name, *LAYERS}


def room(name):
    return name.split(".")[1]


def level(name):
    layers = [set(layer.split()) for layer in LAYERS[name.split(".")[0]].split("|")]
    return next(number for number, layer in enumerate(layers) if room(name) in layer)


def each_module(*packages):
    names = [name for name in modules() if name not in LAYERS and name.split(".")[0] in (packages or LAYERS)]
    return pytest.mark.parametrize("name", names)


@each_module("mimo_role")
def test_mimo_role_does_not_know_the_launcher(name):
    assert not [target for target in imports(name) if target.startswith("launcher")]


@each_module()
def test_a_module_imports_from_its_own_package_and_from_those_below(name):
    own = [target for target in imports(name) if target.split(".")[0] == name.split(".")[0] and room(target) != room(name)]
    assert not [target for target in own if level(target) >= level(name)]


@each_module()
def test_no_two_modules_import_each_other_however_far_round(name):
    reached, new = set(), imports(name)
    while new:
        reached |= new
        new = {target for other in new for target in imports(other)} - reached
    assert name not in reached


def uses(tree, *, of, names):
    """Whether code takes one of the names from an object."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return any(node.value.id == of and node.attr in names for node in found)


@each_module()
def test_the_environment_has_one_reader(name):
    assert name == "mimo_role.host.environ" or not uses(modules()[name], of="os", names=("environ", "getenv", "putenv"))


@each_module()
def test_only_commands_print(name):
    calls = (node for node in ast.walk(modules()[name]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    assert name.startswith("launcher.commands.") or not [node for node in calls if node.func.id == "print"]


@cache
def own_private_names():
    """What our own code defines or sets with a leading underscore; and the documented names of Python's that begin so."""
    found = {"_replace", "_asdict", "_fields", "_exit", "_current_frames"}
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


@each_module()
def test_private_names_of_others_stand_in_few_files(name):
    taken = {node.attr for node in ast.walk(modules()[name]) if isinstance(node, ast.Attribute)}
    foreign = {attribute for attribute in taken if attribute.startswith("_") and not attribute.endswith("__")}
    assert name.partition(".")[2] in PRIVATE_NAMES.split() or not foreign - own_private_names()


def test_mimo_role_hands_on_exactly_what_it_names():
    pytest.importorskip("torch")
    assert {name for name in dir(mimo_role) if getattr(mimo_role, name) is not None} == set(mimo_role.__all__)


CONFIG = ROOT / "examples" / "digits_vlm" / "non_colocated.yaml"
PURE = (
    "import launcher.cli, launcher.config.loader, launcher.host.resources, launcher.plan.planner, launcher.run_dir.writer, "
    "mimo_role.groups.rounds, mimo_role.monitoring.heartbeat, mimo_role.pipeline.timeline, mimo_role.rank_environ, "
    "mimo_role.resharding.lane_balancing, mimo_role.resharding.transfer_plan, mimo_role.training.seeding"
)


def main_with(*words):
    return f"from launcher.cli import main\ntry: assert main({list(map(str, words))}) == 0\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        pytest.param("import mimo_role; mimo_role.Topology", "torch numpy omegaconf", id="import mimo_role"),
        pytest.param(PURE, "torch torchx numpy", id="pure modules"),
        pytest.param("import launcher.plan.plan_file", "torch omegaconf yaml", id="reading a plan"),
        pytest.param("import launcher.worker.entrypoint", "torch omegaconf yaml rich", id="the process of a rank"),
        pytest.param(
            "import launcher.worker.entrypoint, launcher.worker.rank_server; from importlib.util import find_spec\n"
            "if find_spec('torch'): import mimo_role.lifecycle, mimo_role.checkpoint.session, mimo_role.pipeline.schedule",
            "mimo_role.rehearsal launcher.worker.rehearsal",
            id="a rank of a real run",
        ),
        pytest.param("import launcher.advise.run_advice", "torch torchx numpy", id="advise"),
        pytest.param(main_with("--help"), "torch torchx numpy omegaconf rich", id="--help"),
        pytest.param(main_with("run", "--help"), "torch torchx numpy omegaconf rich", id="run --help"),
        pytest.param(main_with("schema"), "torch torchx numpy omegaconf", id="schema"),
        pytest.param(main_with("plan", CONFIG), "torch torchx numpy rich", id="plan"),
        pytest.param("import launcher.agent.lifecycle, launcher.jobs", "torch rich", id="run and status"),
        pytest.param("import launcher.top.command", "torch torchx numpy omegaconf", id="top"),
        pytest.param(main_with("plan", "--json", CONFIG), "torch torchx numpy", id="plan --json"),
        pytest.param(main_with("plan", "--svg", CONFIG), "torch torchx numpy", id="plan --svg"),
    ],
)
def test_heavy_packages_are_not_loaded_by(code, packages):
    check = f"\nimport sys; found = {set(packages.split())} & sys.modules.keys(); assert not found, found"
    subprocess.run([sys.executable, "-c", code + check], check=True, capture_output=True, timeout=60, cwd=ROOT)


def test_a_job_is_submitted_without_torch():
    pytest.importorskip("torchx")
    code = main_with("submit", ROOT / "examples" / "slurm" / "two_pools.yaml", "--to", "slurm", "--dry-run")
    subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; assert 'torch' not in sys.modules"],
        check=True,
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )
