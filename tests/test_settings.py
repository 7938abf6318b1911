"""Settings: one way in, a sentence for every mistake, and a file that repeats the run."""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from flowrl.recipe import LoraSpec, MethodSpec, OptimSpec, PolicySpec, Recipe, RewardSpec
from flowrl.settings import SettingsError, arguments, changes, dump, load, resolve
from flowrl.yamlfile import read, text

RECIPE = Recipe(
    method=MethodSpec(args={"window": (0, 4), "fan": {2: 3}, "levels": [1, 2], "noise": 0.7}),
    rewards=(RewardSpec("clip", 1.0), RewardSpec("mine.py:f", -0.5)),
)


def refused(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        resolve(RECIPE, overrides, file)
    return str(caught.value)


def written(folder: Path, content: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),  # PyYAML alone reads text here
        ("optim.lr=1", "optim.lr", 1.0),
        ("policy.lora.rank=4", "policy.lora.rank", 4),
        ("policy.lora.targets=[to_q, to_k]", "policy.lora.targets", ("to_q", "to_k")),
        ("policy.checkpointing=true", "policy.checkpointing", True),
        ("optim.betas=[0.8, 0.99]", "optim.betas", (0.8, 0.99)),
        ("data.heldout=0.2", "data.heldout", 0.2),
        ("data.heldout=test.txt", "data.heldout", "test.txt"),
        ("run.minutes=null", "run.minutes", None),
        ("run.name=123", "run.name", "123"),
        ("run.name=no", "run.name", "no"),
        ("run.name=16:9", "run.name", "16:9"),
        ("run.name=a=b", "run.name", "a=b"),
        ("policy.negative=", "policy.negative", ""),
        ("run.seed=010", "run.seed", 10),
        ("rewards=[{name: jpeg, weight: 2}]", "rewards", (RewardSpec("jpeg", 2.0),)),
        ("rewards=[]", "rewards", ()),
        ("rewards.0.weight=2", "rewards", (RewardSpec("clip", 2.0), RewardSpec("mine.py:f", -0.5))),
        ("rewards.2.name=jpeg", "rewards", (*RECIPE.rewards, RewardSpec("jpeg"))),
        ("method.args.noise=0.9", "method.args", {**RECIPE.method.args, "noise": 0.9}),
        ("method.args.fan.2=5", "method.args", {**RECIPE.method.args, "fan": {2: 5}}),
        ("method.args.new.deep=[1]", "method.args", {**RECIPE.method.args, "new": {"deep": [1]}}),
        ("method.args={}", "method.args", {}),
        ("optim={lr: 0.5}", "optim", OptimSpec(lr=0.5)),
        ("policy={lora: {rank: 8}, steps: 3}", "policy", PolicySpec(steps=3, lora=LoraSpec(rank=8))),
    ],
)
def test_an_override_sets_its_field_and_no_other(override: str, path: str, value: object):
    got = resolve(RECIPE, [override])
    found: Any = got
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)
    first = path.partition(".")[0]
    others = [name for name in Recipe.__dataclass_fields__ if name != first]
    assert [getattr(got, name) for name in others] == [getattr(RECIPE, name) for name in others]


def test_a_section_given_as_a_mapping_keeps_the_recipes_other_fields():
    base = resolve(RECIPE, ["optim.lr=0.5"])
    assert resolve(base, ["optim={warmup: 3}"]).optim == OptimSpec(lr=0.5, warmup=3)


def test_python_values_are_taken_as_they_are():
    got = resolve(RECIPE, {"rewards": (RewardSpec("x"),), "method.args.window": (1, 2), "optim.lr": 0.5})
    assert (got.rewards, got.method.args["window"], got.optim.lr) == ((RewardSpec("x"),), (1, 2), 0.5)


def test_the_recipe_given_is_left_alone():
    before = repr(RECIPE)
    resolve(RECIPE, ["method.args.fan.9=9", "rewards.0.weight=9", "method.args.levels=[]"])
    assert repr(RECIPE) == before


def test_later_overrides_win_and_overrides_win_over_the_file(tmp_path: Path):
    file = written(tmp_path, "optim: {lr: 1.0, warmup: 7}\nmethod:\n  args: {noise: 3}\n")
    got = resolve(RECIPE, ["optim.lr=2", "optim.lr=3"], file)
    assert got.optim == OptimSpec(lr=3, warmup=7)
    assert got.method.args == {"noise": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optm.lr=1", "unknown setting optm.lr: did you mean optim.lr?"),
        ("lr=1", "unknown setting lr: did you mean optim.lr?"),
        ("group=3", "unknown setting group: did you mean sizes.group?"),
        ("sizes.gruop=3", "unknown setting sizes.gruop: did you mean sizes.group?"),
        ("policy.lora.rnk=3", "unknown setting policy.lora.rnk: did you mean policy.lora.rank?"),
        ("optim={lrr: 1}", "unknown setting optim.lrr in --set: did you mean optim.lr?"),
        ("optim.lr.x=1", "unknown setting optim.lr.x (optim.lr has no parts): did you mean optim.lr?"),
        ("xyzzy=1", "unknown setting xyzzy: there are method, policy, rewards, data, optim, sizes, evaluate, guard, run"),
        ("sizes.group=many", "sizes.group: expected a whole number, got 'many' (--set)"),
        ("sizes.group=2.5", "sizes.group: expected a whole number, got 2.5 (--set)"),
        ("sizes.group=true", "sizes.group: expected a whole number, got true (--set)"),
        ("sizes.group='8'", "sizes.group: expected a whole number, got '8' (--set)"),
        ("sizes.group=0", "sizes.group must be at least 1, got 0 (--set)"),
        ("run.minutes=0", "run.minutes must be above 0, got 0 (--set)"),
        ("run.minutes=soon", "run.minutes: expected a number, got 'soon' (--set)"),
        ("optim.lr=", "optim.lr: expected a number, got nothing (--set)"),
        ("optim.eps=.nan", "optim.eps must be above 0, got nan (--set)"),
        ("rewards.0.weight=.nan", "rewards.0.weight: expected a number, got nan (--set)"),
        ("policy.checkpointing=maybe", "policy.checkpointing: expected true or false, got 'maybe' (--set)"),
        ("policy.checkpointing=1", "policy.checkpointing: expected true or false, got 1 (--set)"),
        ("policy.dtype=fp32", "policy.dtype: expected 'float32', 'bfloat16' or 'float16', got 'fp32' (--set)"),
        ("run.name=null", "run.name: expected text, got nothing (--set)"),
        ("data.prompt=[a]", "data.prompt: expected text, got ['a'] (--set)"),
        ("data.heldout=[1]", "data.heldout: expected text or a number, got [1] (--set)"),
        ("optim=5", "optim: expected a mapping of name, lr, betas, eps, weight_decay, max_norm, warmup, got 5 (--set)"),
        ("method.args=3", "method.args: expected a mapping, got 3 (--set)"),
        ("method.args={2: 3}", "method.args.2: expected text, got 2 (--set)"),
        ("method.args.noise.x=3", "method.args.noise.x: method.args.noise is 0.7, which has no parts to set; set it whole"),
        ("optim.betas=3", "optim.betas: expected a list, got 3 (--set)"),
        ("optim.betas=[1]", "optim.betas.1 is missing (--set)"),
        ("optim.betas=[1, 2, 3]", "optim.betas: expected 2 values, got [1, 2, 3] (--set)"),
        ("policy.lora.targets=[1]", "policy.lora.targets.0: expected text, got 1 (--set)"),
        ("rewards=clip", "rewards: expected a list, got 'clip' (--set)"),
        (
            "rewards=[clip=1]",
            "rewards.0: expected a mapping of name, weight, threshold, gate, device, dtype, batch, offload, frames, "
            "got 'clip=1' (--set)",
        ),
        ("rewards=[{weight: 1}]", "rewards.0.name is missing (--set)"),
        ("rewards.5.name=x", "rewards.5.name: rewards is a list of 2; give an index from 0 to 2, not '5'"),
        ("rewards.first.name=x", "rewards.first.name: rewards is a list of 2; give an index from 0 to 2, not 'first'"),
        ("optim.lr", "'optim.lr' sets nothing: write key=value, such as optim.lr=1e-4"),
        ("=3", "'=3' sets nothing: write key=value, such as optim.lr=1e-4"),
    ],
)
def test_a_mistake_gets_a_sentence(override: str, message: str):
    assert refused(override) == message


def test_nearest_names_inside_a_list():
    assert refused("rewards.1.nme=x").startswith("unknown setting rewards.1.nme: did you mean rewards.1.name")
    assert refused("rewards=[{name: a}, {nme: x}]").startswith(
        "unknown setting rewards.1.nme in --set: did you mean rewards.1.name"
    )


def test_every_mistake_of_a_file_is_told_with_its_place(tmp_path: Path):
    file = written(tmp_path, "optim:\n  lr: fast\nsizes:\n  group: 0\n")
    assert refused(file=file) == f"optim.lr: expected a number, got 'fast' ({file})\nsizes.group must be at least 1, got 0 ({file})"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim:\n  lrr: 2\n", "unknown setting optim.lrr in {file}: did you mean optim.lr?"),
        ("rewards:\n- weight: 1\n  nam: x\n", "unknown setting rewards.0.nam in {file}: did you mean rewards.0.name"),
        ("optim:\n  lr: 1\n  lr: 2\n", "{file} is not valid YAML (line 3, column 3): 'lr' is given twice"),
        ("optim: [\n", "{file} is not valid YAML (line 2, column 1): "),
        ("- 1\n", "{file}: expected fields and values such as `optim: {{lr: 3e-4}}`, got [1]"),
        ("optim: !!python/object:os.system {}\n", "{file} is not valid YAML (line 1, column 8): could not determine a constructor"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, content: str, message: str):
    file = written(tmp_path, content)
    with pytest.raises(SettingsError) as by_load:
        load(file)
    assert str(by_load.value).startswith(message.format(file=file))
    assert refused(file=file).startswith(message.format(file=file))


def test_a_missing_or_binary_file_is_a_sentence(tmp_path: Path):
    assert refused(file=tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'} cannot be read: No such file or directory"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused(file=tmp_path / "binary.yaml") == f"{tmp_path / 'binary.yaml'} cannot be read: it is not a text file"


@pytest.mark.parametrize("content", ["", "# nothing set\n", "optim:\n  # lr: 1\n"])
def test_an_empty_file_or_section_sets_nothing(tmp_path: Path, content: str):
    assert load(written(tmp_path, content)) == Recipe()
    assert resolve(RECIPE, [], written(tmp_path, content)) == RECIPE


def test_no_error_of_pydantic_reaches_the_user():
    with pytest.raises(SettingsError) as caught:
        resolve(RECIPE, ["sizes.group=0"])
    assert caught.value.__suppress_context__ and "pydantic" not in str(caught.value)


def test_a_dumped_recipe_loads_equal_down_to_tuples_and_text(tmp_path: Path):
    args = {"tuple": (0, (1, 2)), "list": [1, (2,)], "map": {2: {"a": None}}, "inf": float("inf"), "tiny": 1e-300, "flag": False,
            "text": ["1e-3", "no", "16:9", "", "null", "true", "0o7", "010", "2001-01-01", "a: b", "# c", " x",
                     "é\n\t", "~", "=", "\x85"]}  # fmt: skip
    recipe = resolve(RECIPE, {"method.args": args, "policy.negative": "null", "run.name": "1e5", "policy.lora.targets": ("a",)})
    assert repr(recipe.method.args) == repr(args)
    back = load(dump(recipe, tmp_path / "deep" / "run.yaml"))
    assert back == recipe
    assert repr(back) == repr(recipe)  # == takes 1 for 1.0 and True


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@hypothesis.settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), values))
def test_any_free_arguments_come_back_from_yaml_equal(tmp_path_factory: pytest.TempPathFactory, args: dict[str, Any]):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text(args), encoding="utf-8")
    assert repr(read(path)) == repr(args)


def test_what_no_file_can_hold_is_refused(tmp_path: Path):
    recipe = Recipe(method=MethodSpec(args={"law": {"made": print}}))
    with pytest.raises(SettingsError, match=r"^method.args.law.made is a builtin_function_or_method, which a file cannot hold; "):
        dump(recipe, tmp_path / "run.yaml")
    assert not (tmp_path / "run.yaml").exists()


forbid = dataclass(frozen=True, config=ConfigDict(extra="forbid"))


@forbid
class Inner:
    level: float = Field(default=0.5, lt=1, le=2)
    kind: Literal["a", "b"] | None = None


@forbid
class Outer:
    size: int
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    names: dict[str, int] = field(default_factory=dict)


def test_it_works_for_any_frozen_dataclass(tmp_path: Path):
    made = resolve(Outer(1, Inner()), ["inner.level=0.25", "many=[{level: 0.1}]", "names.x=3"])
    assert made == Outer(1, Inner(0.25), (Inner(0.1),), {"x": 3})
    assert load(dump(made, tmp_path / "outer.yaml"), Outer) == made
    with pytest.raises(SettingsError, match=r"^inner.level must be below 1, got 1 "):
        resolve(Outer(1, Inner()), ["inner.level=1"])
    with pytest.raises(SettingsError, match=r"did you mean inner.level"):
        resolve(Outer(1, Inner()), ["inner.levle=1"])
    with pytest.raises(SettingsError, match=r"^size is missing"):
        load(written(tmp_path, "inner: {level: 0.1}"), Outer)


def method(
    window: int, levels: tuple[float, ...] = (0.0,), std: Literal["group", "global"] = "group", compat: str | None = None
) -> None: ...


def test_arguments_are_checked_against_the_signature():
    assert arguments(method, {"window": 3, "levels": [1, 2]}) == {"window": 3, "levels": (1.0, 2.0)}
    for given_args, message in [
        ({"window": 1, "widnow": 2}, "unknown setting method.args.widnow: did you mean method.args.window?"),
        ({}, "method.args.window is missing"),
        ({"window": "x"}, "method.args.window: expected a whole number, got 'x'"),
        ({"window": 1, "std": "all"}, "method.args.std: expected 'group' or 'global', got 'all'"),
    ]:
        with pytest.raises(SettingsError) as caught:
            arguments(method, given_args)
        assert str(caught.value) == message
    with pytest.raises(SettingsError, match=r"^unknown setting widnow: did you mean window"):
        arguments(method, {"widnow": 2}, where="")


def test_another_method_drops_the_arguments_of_the_recipes_own() -> None:
    """The demo's arguments are DiffusionNFT's; `--set method.name=flow_grpo` must not pass them on."""
    from flowrl.recipes import named
    from flowrl.settings import resolve

    demo = named("shapes")
    assert demo.method.args
    assert resolve(demo, ["method.name=flow_grpo", "method.args.noise=0.9"]).method.args == {"noise": 0.9}
    assert resolve(demo, {"method.args.noise": 0.9, "method.name": "flow_grpo"}).method.args == {"noise": 0.9}
    assert resolve(demo, ["method={name: branch_grpo}"]).method.args == {}
    assert resolve(demo, ["method.name=diffusion_nft", "method.args.kl=0.1"]).method.args == {**demo.method.args, "kl": 0.1}
    assert resolve(demo, ["optim.lr=1e-4"]).method.args == demo.method.args


def test_what_a_resumed_run_changes_is_named() -> None:
    old = Recipe(method=MethodSpec("gspo", {"updates": 2}))
    new = resolve(old, {"method.name": "cispo", "sizes.group": 6, "run.iterations": 7, "run.folder": "elsewhere"})
    assert changes(old, new) == [
        "method.name: gspo -> cispo",
        "method.args.updates: 2 -> not set",
        "sizes.group: 12 -> 6",
    ]
    assert changes(old, old) == []
