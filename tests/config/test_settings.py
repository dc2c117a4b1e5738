import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.config.settings import Config, LayerConfig, PQConfig, TrainingConfig
from onnxpq.config.target import TargetConfig
from onnxpq.errors import ConfigError
from onnxpq.support.kinds import ALL, KINDS

INTEGERS = {
    (PQConfig, "sub_vector"): (1, 64),
    (PQConfig, "codewords"): (2, 256),
    (PQConfig, "codebooks"): (1, 2**20),
    (TrainingConfig, "epochs"): (0, 100_000),
    (TrainingConfig, "steps"): (0, 10**9),
    (TrainingConfig, "batch_size"): (1, 2**20),
    (TrainingConfig, "patience"): (1, 100_000),
    (Config, "min_weights"): (1, 2**40),
    (Config, "seed"): (0, 2**32 - 1),
}
REALS = {
    (TrainingConfig, "regularized"): (0, 1),
    (TrainingConfig, "alpha"): (0, 1e9),
    (TrainingConfig, "alpha_growth"): (1, 1e9),
    (TrainingConfig, "distillation"): (0, 1),
    (TrainingConfig, "temperature"): (0.01, 1000),
    (TrainingConfig, "learning_rate"): (1e-9, 10),
    (TrainingConfig, "latent_rate"): (0, 1e6),
    (TrainingConfig, "mixup"): (0, 100),
    (TrainingConfig, "minutes"): (0.001, 1e6),
    (TrainingConfig, "features"): (0, 1e6),
    (TrainingConfig, "validation"): (0.001, 0.9),
    (Config, "held_out"): (0.001, 0.9),
    (Config, "floor"): (0, 1e6),
}
CHOICES = {
    (PQConfig, "codebooks"): ("auto", "layer", "position"),
    (PQConfig, "body"): ("auto", "float", "int8"),
    (Config, "rest"): ("float32", "float16"),
    (TrainingConfig, "regularizer"): ("codebook", "murray-ng", "l1", "l2", "quartic", "none"),
    (TrainingConfig, "loss"): ("auto", "cross-entropy", "mse", "distillation"),
}
OTHERS = {
    (PQConfig, "fast"),
    (PQConfig, "reorder"),
    (Config, "conv1x1"),
    (Config, "tables"),
    (Config, "batch_axis"),
    (Config, "pq"),
    (Config, "training"),
    (Config, "target"),
    (Config, "layer"),
    (Config, "include"),
    (Config, "exclude"),
    (Config, "only"),
    (Config, "keep_metadata"),
    (Config, "output"),
}
"""Each has a test of its own below."""


def sentence(kind: type, name: str, wanted: str, value: object) -> str:
    return f"^{re.escape(f'The {name!r} parameter of {kind.__name__} must be {wanted}. Got {value!r} instead.')}$"


def test_every_setting_has_a_test_of_its_bounds() -> None:
    tested = INTEGERS.keys() | REALS.keys() | CHOICES.keys() | OTHERS
    settings = {(k, entry.name) for k in (PQConfig, TrainingConfig, Config) for entry in dataclasses.fields(k)}
    assert tested == settings


@pytest.mark.parametrize(("kind", "name"), INTEGERS)
def test_integers_have_bounds(kind: type, name: str) -> None:
    low, high = INTEGERS[kind, name]
    for good in (low, high):
        assert getattr(kind(**{name: good}), name) == good
    for bad in (low - 1, high + 1, float(low), True):
        with pytest.raises(ConfigError, match=sentence(kind, name, f"an integer in [{low}, {high}]", bad)):
            kind(**{name: bad})


def test_the_sentence_in_full() -> None:
    with pytest.raises(ConfigError) as caught:
        PQConfig(codewords=0)
    expected = "The 'codewords' parameter of PQConfig must be an integer in [2, 256]. Got 0 instead."
    assert str(caught.value) == expected


@pytest.mark.parametrize(("kind", "name"), REALS)
def test_real_numbers_have_bounds(kind: type, name: str) -> None:
    low, high = REALS[kind, name]
    for good in (low, high, (low + high) / 2):
        assert getattr(kind(**{name: good}), name) == good
    for bad in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf), math.nan, math.inf, "1", True):
        with pytest.raises(ConfigError, match=sentence(kind, name, f"a number in [{low:g}, {high:g}]", bad)):
            kind(**{name: bad})


@pytest.mark.parametrize(("kind", "name"), CHOICES)
def test_choices_are_listed(kind: type, name: str) -> None:
    for good in CHOICES[kind, name]:
        assert getattr(kind(**{name: good}), name) == good
    wanted = "one of " + ", ".join(f"'{choice}'" for choice in CHOICES[kind, name])
    with pytest.raises(ConfigError, match=sentence(kind, name, wanted, "foo")):
        kind(**{name: "foo"})


@pytest.mark.parametrize("name", ["include", "exclude"])
@pytest.mark.parametrize("bad", ["fc*", ["fc*"], (1,), None])
def test_globs_are_a_tuple_of_strings(name: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=sentence(Config, name, "a tuple of strings", bad)):
        Config(**{name: bad})


def test_kinds_are_those_that_there_are() -> None:
    assert Config().kinds == {"fc"}
    assert Config(only=("conv", "fc")).kinds == {"conv", "fc"}
    assert Config(only=("all",)).kinds == {"fc", "conv", "recurrent", "table", "other"}
    assert Config.from_dict({"only": ["conv"]}).only == ("conv",)
    for bad in ("fc", ("bias",), ["fc"], None):
        wanted = "a tuple of 'fc', 'conv', 'recurrent', 'table', 'other', 'all'"
        with pytest.raises(ConfigError, match=sentence(Config, "only", wanted, bad)):
            Config(only=bad)  # type: ignore[arg-type]


def test_keep_metadata_is_a_boolean() -> None:
    assert Config(keep_metadata=True).keep_metadata
    with pytest.raises(ConfigError, match=sentence(Config, "keep_metadata", "True or False", "yes")):
        Config(keep_metadata="yes")  # type: ignore[arg-type]


def test_conv1x1_is_a_boolean() -> None:
    assert Config(conv1x1=True).conv1x1
    with pytest.raises(ConfigError, match=sentence(Config, "conv1x1", "True or False", "yes")):
        Config(conv1x1="yes")  # type: ignore[arg-type]


def test_tables_go_by_the_target_unless_it_is_said() -> None:
    assert not Config().takes_tables
    assert Config(target=TargetConfig(ratio=2)).takes_tables
    assert not Config(target=TargetConfig(fc_ratio=2)).takes_tables
    assert not Config(target=TargetConfig(ratio=2), tables=False).takes_tables
    assert Config(target=TargetConfig(fc_ratio=2), tables=True).takes_tables
    with pytest.raises(ConfigError, match=sentence(Config, "tables", "True, False or None", "yes")):
        Config(tables="yes")  # type: ignore[arg-type]


def test_reorder_is_yes_or_no() -> None:
    assert PQConfig(reorder=True).reorder
    with pytest.raises(ConfigError, match=sentence(PQConfig, "reorder", "True or False", "yes")):
        PQConfig(reorder="yes")  # type: ignore[arg-type]


def test_fast_tables_are_for_few_codewords() -> None:
    assert PQConfig(fast=True, codewords=16).fast
    with pytest.raises(ConfigError, match=sentence(PQConfig, "fast", "True or False", 1)):
        PQConfig(fast=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^The 'fast' parameter of PQConfig needs at most 16 codewords. Got 17 inst"):
        PQConfig(fast=True, codewords=17)


def test_nested_settings_and_output_have_types() -> None:
    with pytest.raises(ConfigError, match=sentence(Config, "pq", "a PQConfig", {})):
        Config(pq={})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=sentence(Config, "training", "a TrainingConfig", None)):
        Config(training=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=sentence(Config, "target", "a TargetConfig", 16)):
        Config(target=16)  # type: ignore[arg-type]
    for bad in ([LayerConfig("fc*")], ("fc*",)):
        with pytest.raises(ConfigError, match=sentence(Config, "layer", "a tuple of LayerConfig", bad)):
            Config(layer=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=sentence(Config, "output", "a string", 3)):
        Config(output=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "wanted", "bad"),
    [
        ("match", "a glob over node names", ""),
        ("match", "a glob over node names", 3),
        ("sub_vector", "an integer in [1, 64]", 65),
        ("codewords", "an integer in [2, 256]", 1),
        ("codebooks", "one of 'auto', 'layer', 'position'", "foo"),
        ("codebooks", "an integer in [1, 1048576]", 0),
    ],
)
def test_settings_of_single_layers_have_bounds(name: str, wanted: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=sentence(LayerConfig, name, wanted, bad)):
        LayerConfig(**{"match": "fc*", name: bad})


def test_fast_tables_are_for_few_codewords_in_single_layers_too() -> None:
    message = "needs at most 16 codewords; the layer table with match = 'a*' asks for 17."
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(pq=PQConfig(fast=True), layer=(LayerConfig("a*", codewords=17),))


def test_a_target_chooses_what_the_layers_get() -> None:
    target = TargetConfig(ratio=16)
    assert Config(pq=PQConfig(fast=True), target=target, layer=(LayerConfig("a*", 4),)).target.is_set
    for name, value in (("sub_vector", 4), ("codewords", 4), ("codebooks", "layer")):
        message = f"A target chooses '{name}' of each layer by itself; {value!r} was set for all of them too."
        with pytest.raises(ConfigError, match=re.escape(message)):
            Config(pq=PQConfig(**{name: value}), target=target)


def test_sizes_and_shares_with_units() -> None:
    config = Config.from_dict({"target": {"size": "2MB", "max_drop": "0.5%"}})
    assert config.target == TargetConfig(size=2_000_000, max_drop=0.005)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sed": 1}, "Config has no setting 'sed'. Its settings are: pq, training, target, layer,"),
        ({"pq": {"codeword": 4}}, "PQConfig has no setting 'codeword'. Its settings are: sub_vector, codewords,"),
        ({"training": {"lr": 1}}, "TrainingConfig has no setting 'lr'. Its settings are: epochs,"),
        ({"pq": 3}, "PQConfig must be a table of settings. Got 3 instead."),
        ({"training": ["x"]}, "TrainingConfig must be a table of settings. Got ['x'] instead."),
        ({"layer": [{"match": "a", "d": 4}]}, "LayerConfig has no setting 'd'. Its settings are: match, sub_vector,"),
        ({"layer": [{"codewords": 4}]}, "LayerConfig needs the setting 'match'. Found codewords."),
        ({"layer": ["fc*"]}, "LayerConfig must be a table of settings. Got 'fc*' instead."),
        ({"layer": {"match": "a"}}, "The 'layer' parameter of Config must be a tuple of LayerConfig."),
        ({"target": {"size": "2 apples"}}, "'2 apples' is no size."),
        (["seed"], "Config must be a table of settings. Got ['seed'] instead."),
        ({"pq": {"codewords": 1}}, "The 'codewords' parameter of PQConfig must be an integer in [2, 256]. Got 1"),
    ],
)
def test_plain_values_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config.from_dict(settings)


def test_absent_values_keep_their_defaults() -> None:
    config = Config.from_dict({"pq": {"codewords": 4}, "exclude": ["head*"]})
    assert config == Config(pq=PQConfig(codewords=4), exclude=("head*",))
    assert Config.from_dict({}) == Config()


def configs(targeted: bool = False) -> st.SearchStrategy[Config]:
    def fields(kind: type) -> dict[str, st.SearchStrategy[Any]]:
        found: dict[str, st.SearchStrategy[Any]] = {}
        for (owner, name), (low, high) in REALS.items():
            if owner is kind:
                found[name] = st.floats(low, high)
        for (owner, name), (low, high) in INTEGERS.items():
            if owner is kind:
                found[name] = st.integers(low, high)
        for (owner, name), choices in CHOICES.items():
            if owner is kind:
                found[name] = found.get(name, st.nothing()) | st.sampled_from(choices)
        return found

    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    layers = st.lists(st.builds(LayerConfig, names, codewords=st.none() | st.integers(2, 256)), max_size=3).map(tuple)
    globs = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3).map(tuple)
    others = {
        "include": globs,
        "exclude": globs,
        "only": st.lists(st.sampled_from((*KINDS, ALL)), max_size=3).map(tuple),
        "output": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    }
    training = fields(TrainingConfig)
    del training["steps"]  # not beside epochs
    parts = {
        "pq": st.builds(PQConfig, **fields(PQConfig)),
        "training": st.builds(TrainingConfig, **training),
    }
    if targeted:
        targets = st.builds(TargetConfig, ratio=st.floats(1, 100), max_drop=st.none() | st.floats(0, 1))
        parts = {"target": targets, "layer": layers}
    return st.builds(Config, **parts, **others, **fields(Config))


@given(configs() | configs(targeted=True))
def test_plain_values_round_trip(config: Config) -> None:
    assert Config.from_dict(config.to_dict()) == config


@given(config=configs() | configs(targeted=True))
def test_toml_round_trips(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.toml"
    path.write_text(config.to_toml(), encoding="utf-8", newline="")
    assert Config.from_toml(path) == config


def test_toml_of_names_beyond_ascii(tmp_path: Path) -> None:
    config = Config(output='ausgä"nge\\😀\x7f\x01\n')
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(tmp_path / "c.toml") == config


@pytest.mark.parametrize(
    ("content", "reason"), [(b"seed = ", "Invalid value"), (b"\xff", "decode"), (None, "No such file")]
)
def test_toml_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^Settings file '{re.escape(str(path))}' cannot be read: .*{reason}"):
        Config.from_toml(path)


def test_epochs_or_steps() -> None:
    with pytest.raises(
        ConfigError, match=r"^The training is given both epochs and steps. Give one of them, or minutes"
    ):
        TrainingConfig(epochs=3, steps=100)


def test_training_is_off_without_epochs_or_without_steps() -> None:
    assert TrainingConfig(epochs=0).is_off
    assert TrainingConfig(steps=0).is_off
    assert not TrainingConfig().is_off
    assert not TrainingConfig(epochs=1).is_off
