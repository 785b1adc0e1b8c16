"""Settings come from flags, files and presets in this order, are plain data, and say what is wrong with them."""

from __future__ import annotations

import json

import pytest

from jaxprune.config import (
    RunConfig,
    make_tasks,
    read_config,
    task_options,
)
from jaxprune.search.settings import PRESETS, EvolveConfig, setting_help
from jaxprune.text import parse_seconds


def test_nothing_said_is_the_quick_preset():
    config = RunConfig.of({})
    assert (config.preset, config.tasks, config.search) == (
        "quick",
        PRESETS["quick"].tasks,
        PRESETS["quick"].config,
    )


def test_a_batching_is_stored_only_where_it_was_asked_for():
    config = RunConfig.of({"batching": "vmap", "chunk": 8, "convolution": "patches"})
    assert RunConfig.from_json(config.to_json()) == config
    assert config.settings() | {"chunk": 8, "convolution": "patches"} == config.settings()
    assert not {"chunk", "convolution"} & RunConfig.of({}).settings().keys()


def test_an_earlier_layer_wins():
    config = RunConfig.of({"population": 8}, {"population": 9, "generations": 3, "task": "fashion"})
    assert (config.search.population, config.search.generations, config.tasks) == (8, 3, ("fashion",))


def test_preset_paper_runs_on_other_tasks():
    config = RunConfig.of({"preset": "paper", "tasks": ["digits"]})
    assert (config.search.vocabulary, config.search.variation, config.tasks) == (
        "paper",
        "paper",
        ("digits",),
    )


def test_a_toml_file_is_a_layer(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'preset = "quick"\ntask = ["digits", "fashion"]\ntime = "20m"\nfitness = "finetune"\n'
        'evaluations = 300\nguess = "mean(X)"\n'
        "kept-fraction = 0.25\n[bases]\ndigits = 5\n"
    )
    config = RunConfig.of(read_config(path))
    assert config.tasks == ("digits", "fashion")
    assert (config.search.time_limit_seconds, config.search.max_evaluations) == (1200.0, 300)
    assert config.guesses == ("mean(X)",)
    assert config.task_options == {"bases": {"digits": 5}, "kept_fraction": 0.25}
    tasks = config.make_tasks()
    assert [task.bases for task in tasks] == [5, 6]
    assert [task.schedule.kept_fraction for task in tasks] == [0.25, 0.25]


def test_the_config_of_a_run_is_accepted_back(tmp_path):
    config = RunConfig.of({"task": "digits", "bases": "digits=3", "seed": 5, "controls": "full"})
    (tmp_path / "config.json").write_text(config.to_json())
    assert RunConfig.of(read_config(tmp_path / "config.json")) == config
    assert RunConfig.of(read_config(tmp_path)) == config
    assert RunConfig.of({"seed": 6}, read_config(tmp_path)).search.seed == 6


def test_the_config_of_a_run_from_python_names_its_tasks(tmp_path):
    plain = {
        "config": EvolveConfig(seed=2).to_json(),
        "tasks": {"fashion": {}},
        "guesses": [],
        "settings": {},
    }
    (tmp_path / "config.json").write_text(json.dumps(plain))
    config = RunConfig.of(read_config(tmp_path))
    assert (config.tasks, config.search) == (("fashion",), EvolveConfig(seed=2))


def test_every_setting_of_a_search_has_its_whole_sentence_as_help():
    sentences = setting_help()
    assert all(sentences.values())
    told = "".join(f"{name}: {sentence}." for name, sentence in sentences.items())
    arguments = EvolveConfig.__doc__.partition("Args:")[2].partition("Raises:")[0]
    assert told.replace(" ", "") == "".join(arguments.split())


def test_task_options_change_tasks():
    options = task_options({"epochs": 7, "base_epochs": 9, "recipe": "adam_fashion", "weight": "digits=2"})
    (task,) = make_tasks(["digits"], options)
    assert (task.recipe.epochs, task.recipe.batch_size, task.base_recipe.epochs) == (7, 100, 9)
    assert task.weight == 2.0


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            {"preset": "quik"},
            r"a preset needs to be one of quick, thorough, paper, got 'quik'. Did you mean 'quick'\?",
        ),
        ({"generatoins": 3}, "needs to be a setting of a run, got 'generatoins'. Did you mean 'generations'"),
        ({"task": "digits", "tasks": ["fashion"]}, "Give 'tasks' only once, got it again as 'tasks'"),
        ({"population": "many"}, "population needs a whole number, got 'many'"),
        ({"population": 1, "elites": -1}, r"needs population >= 2 \(got 1\); elites >= 0 \(got -1\)"),
        ({"fitness": "best"}, "fitness one of landscape, finetune"),
        ({"controls": "all"}, "controls needs to be one of standard, full, got 'all'"),
        ({"batching": "fast"}, "batching needs to be one of auto, scan, loop, vmap, got 'fast'"),
        ({"convolution": "fft"}, "convolution needs to be one of auto, library, patches, got 'fft'"),
        ({"chunk": 0}, "chunk needs to be a whole number, 1 or more, got 0"),
        ({"chunk": "8"}, "chunk needs to be a whole number, 1 or more, got '8'"),
        ({"tasks": 3}, "tasks needs to be a text or a list of texts, got 3"),
        (
            {"bases": "many"},
            r"bases needs a whole number below 2\*\*31, or one for each task as in task=value",
        ),
        ({"bases": 2.5}, "bases needs a whole number .* got 2.5"),
        ({"weight": True}, "weight needs a number, .* got True"),
        ({"recipe": 3}, "recipe needs a name, .* got 3"),
        ({"time": "soon"}, 'a time needs to look like "90s", "20m" or "1h30m", and be above 0, got \'soon\''),
    ],
)
def test_wrong_settings_are_named(layer, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.of(layer)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"task": "digit"}, "a task needs to be one of .* got 'digit'. Did you mean 'digits'"),
        ({"task": "no_such_module:make"}, "needs a module on the Python path with a function 'make'"),
        ({"task": "json:make"}, "needs a module on the Python path with a function 'make'"),
        ({"task": "json:loads_"}, "needs a module on the Python path"),
        (
            {"task": "digits", "bases": "digit=3"},
            "bases needs names of this run's tasks .* Did you mean 'digits'",
        ),
        ({"task": "digits", "bases": 0}, r"task 'digits' needs bases >= 1 \(got 0\)"),
        ({"task": "digits", "kept_fraction": 0}, "kept_fraction must be above 0 and at most 1, got 0.0"),
        ({"task": "digits", "rounds": 2}, "Give kept_fraction as well as rounds for task 'digits'"),
        ({"task": "digits", "recipe": "adam_shrt"}, "adam_short"),
    ],
)
def test_wrong_tasks_are_named(layer, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.of(layer).make_tasks()


def test_a_missing_data_set_is_named_with_its_command(tmp_path):
    config = RunConfig.of({"preset": "paper"})
    assert config.tasks == ("mnist-lenet5", "cifar10-vgg16") and config.unseen == ()
    with pytest.raises(ValueError, match=r"tfds:mnist needs to be prepared .*jaxprune prepare mnist"):
        config.make_tasks(tmp_path)


def test_a_scale_comes_before_numbers_of_epochs():
    (task,) = make_tasks(["digits"], {"scale": 0.1, "epochs": 7})
    assert (len(task.train[1]), len(task.validation[1])) == (110, 35)
    assert [recipe.epochs for recipe in task.recipes] == [7, 2]
    with pytest.raises(ValueError, match="scale needs to be a share"):
        make_tasks(["digits"], {"scale": {"digits": 2.0}})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "population = ", "run.toml needs to be TOML, got an error at"),
        ("config.json", "{", "config.json needs to be JSON, got an error at"),
        ("config.json", "[]", "config.json needs settings by name, got a list"),
        ("config.json", '{"config": 3}', "need the tables config and settings"),
    ],
)
def test_files_that_cannot_be_read_are_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"--config needs a TOML file, or config.json of a run, got .*none.toml"
    ):
        read_config(tmp_path / "none.toml")
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a text file"):
        read_config(tmp_path / "run.toml")


@pytest.mark.parametrize("text", ["0", "-3", "1.2.3s", "m", "", "20x"])
def test_times_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="a time needs to look like"):
        parse_seconds(text)


def test_unseen_tasks_are_those_of_the_preset_that_are_not_searched_on():
    assert RunConfig.of({}).unseen == PRESETS["quick"].unseen == ("fashion", "digits-res")
    assert RunConfig.of({"task": ["digits", "fashion"]}).unseen == ("digits-res",)
    assert RunConfig.of({"unseen": "none"}).unseen == ()
    assert RunConfig.of({"preset": "paper", "task": "digits"}).unseen == ()
    with pytest.raises(ValueError, match=r"unseen needs tasks that are not searched on, got digits\. Leave"):
        RunConfig.of({"task": "digits", "unseen": ["digits", "fashion"]})


def test_unseen_tasks_come_back_from_the_config_of_a_run(tmp_path):
    for unseen in ("fashion", "none"):
        config = RunConfig.of({"task": "digits", "unseen": unseen})
        (tmp_path / "config.json").write_text(config.to_json())
        assert RunConfig.of(read_config(tmp_path)) == config


def test_options_of_a_search_do_not_hold_for_unseen_tasks_unless_named():
    config = RunConfig.of({"task": "digits", "unseen": "fashion", "bases": 3, "final_bases": 2})
    (digits,), (fashion,) = config.make_tasks(), config.make_unseen()
    assert (digits.bases, digits.final_bases) == (3, 2)
    assert (fashion.name, fashion.bases, fashion.final_bases) == ("fashion", 6, 2)
    named = RunConfig.of({"task": "digits", "unseen": "fashion", "bases": {"fashion": 4}})
    assert named.make_unseen()[0].bases == 4 and named.make_tasks()[0].bases == 16


def test_a_preset_may_set_options_of_tasks():
    assert RunConfig.of({"preset": "thorough"}).task_options == {"bases": 64}
    assert RunConfig.of({"preset": "thorough", "bases": 8}).task_options == {"bases": 8}
