from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from kmon.config import (
    Config,
    columns_of,
    counted,
    equalities,
    histogram_of,
    load_config,
    merge_function,
    parse_duration,
    parse_size,
    show_duration,
)
from kmon.errors import ConfigError
from tests.conftest import TEMPLATE

BASE = """\
source: {kind: files, paths: [in/*.ndjson]}
events:
  fields:
    ts: {type: time}
    shop: {}
    amount: {type: number}
dimensions: [shop]
measures:
  visits: count(*)
  paid: sum(amount)
metrics:
  visits: {count: visits}
watch: [[], [shop]]
"""


@pytest.fixture
def write(tmp_path: Path):
    def put(text: str | bytes) -> Path:
        path = tmp_path / "kmon.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return put


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def edited(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def errors() -> list[tuple[str, str, str]]:
    """(what is replaced, by what, what is said) from config_errors.txt; an addition replaces nothing."""
    found = []
    for block in (Path(__file__).parent / "config_errors.txt").read_text(encoding="utf-8").split("\n\n")[1:]:
        lines = dict(line.split(" ", 1) if " " in line else (line, "") for line in block.strip("\n").split("\n"))
        found.append((lines.get("-", "").replace("\\n", "\n"), lines["+"].replace("\\n", "\n"), lines["=>"]))
    return found


@pytest.mark.parametrize(("old", "new", "says"), errors(), ids=lambda text: text[:50])
def test_a_wrong_key_or_value_is_told_with_its_place(write, old, new, says):
    assert refused(write(edited(old, new) if old else f"{BASE}{new}\n")) == says


def test_all_wrong_keys_and_values_are_tried():
    assert len(errors()) == 108


def test_a_largest_value_that_nothing_watches_is_kept(write):
    assert load_config(write(edited("sum(amount)", "max(amount)"))).measures["paid"] == "max(amount)"


def test_a_histogram_stands_for_measures_that_metrics_know(write):
    quantile = "metrics:\n  half: {quantile: size, q: 0.5}\n"
    sizes = "histograms: {size: {of: amount, where: shop = 'a' OR shop = 'b', from: 1, to: 10}}\n"
    config = load_config(write(edited("metrics:\n", sizes + quantile)))
    buckets = {name: text for name, text in config.measures.items() if histogram_of(name) == "size"}
    assert list(buckets) == [f"size_{i:02d}_" for i in range(12)]
    assert buckets["size_00_"] == "count(\"amount\") FILTER (shop = 'a' OR shop = 'b')"
    assert buckets["size_02_"] == (
        "count(*) FILTER ((shop = 'a' OR shop = 'b') AND \"amount\" > 1.25893 AND \"amount\" <= 1.58489)"
    )
    assert config.metrics["half"].measures == tuple(buckets)
    assert config.metrics["half"].beyond(9) == ("size_10_", "size_11_")
    assert Config.model_validate(config.model_dump(by_alias=True)).measures == config.measures
    assert histogram_of("visits") is histogram_of("events_") is None


FILES = [
    ("", ": the file is empty or not a mapping of keys to values"),
    ("- a\n- b\n", ": the file is empty or not a mapping of keys to values"),
    ("a: [1,\nb: {", ", line 2: not valid YAML: expected the node content, but found '<stream end>'"),
    ("a: 1\n\tb: 2\n", ", line 2: not valid YAML: found character '\\t' that cannot start any token"),
    (b"name: \x00", ": not valid YAML: a control character"),
    (b"name: x\nstore: \xff\xfe\n", ", line 2: not UTF-8: save the file in that encoding"),
    ("a: " + "[" * 5000, ": nested too deeply"),
    ("a: &a [*a]", ": nested too deeply"),
]


@pytest.mark.parametrize(("text", "says"), FILES)
def test_what_is_no_configuration(write, text, says):
    assert refused(write(text)) == says


def test_files_that_cannot_be_read(tmp_path):
    missing = tmp_path / "none.yaml"
    assert refused(missing) == " does not exist: create one with 'kmon init', or name yours with --config"
    assert refused(tmp_path) == " cannot be read: Is a directory"


def test_a_byte_order_mark_and_an_odd_name_are_fine(write, tmp_path):
    assert load_config(write("\ufeff" + BASE)).name == "kmon"
    odd = tmp_path / "it's 100% \N{SHOPPING TROLLEY}.yaml"
    odd.write_text(BASE)
    assert load_config(odd).resolve("a/b") == tmp_path / "a/b"


def test_variables_are_expanded_wherever_they_stand(write, monkeypatch):
    monkeypatch.setenv("KMON_TEST_NAME", "a: b # ${KMON_TEST_NOT_SET}")
    monkeypatch.setenv("KMON_TEST_PORT", "5007")
    config = load_config(write(BASE + "name: x${KMON_TEST_NAME}\napps: {port: '${KMON_TEST_PORT}'}\n"))
    assert (config.name, config.apps.port) == ("xa: b # ${KMON_TEST_NOT_SET}", 5007)


# ---- the knobs -------------------------------------------------------------------------------------------------------


def models(model: type[BaseModel] = BaseModel) -> list[type[BaseModel]]:
    return [
        m for sub in model.__subclasses__() for m in (sub, *models(sub)) if sub.__module__.startswith("kmon.config")
    ]


def test_every_knob_says_what_it_means_or_has_a_name_that_does():
    """A key without a word of its own is one that its section explains; their number may only fall."""
    folder = Path(load_config.__code__.co_filename).parent
    source = "".join((folder / name).read_text(encoding="utf-8") for name in ("models.py", "metrics.py"))
    keys = [(m.__name__, key) for m in models() for key in m.model_fields]
    assert len(keys) == len(set(keys)) > 60
    silent = [
        key for _, key in keys if not re.search(rf"^    {key}: .*(\n    .*\))?\n    \"\"\"", source, re.MULTILINE)
    ]
    assert len(silent) <= 40


def test_the_template_is_valid_and_shows_each_section():
    config = load_config(TEMPLATE)
    assert config.path == TEMPLATE
    keys = set(yaml.safe_load(TEMPLATE.read_text(encoding="utf-8")))
    assert keys <= set(Config.model_fields)
    left_to_their_defaults = {"forget", "serve", "ledger", "notebooks", "partners", "path", "copied", "digest"}
    left_to_their_defaults |= {"histograms", "queries", "serve_beyond_localhost", "telemetry"}
    assert set(Config.model_fields) - keys == left_to_their_defaults


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load_config(TEMPLATE).name = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("10s", 10, "10s"), ("1m30s", 90, "90s"), ("1.5h", 5400, "90m"), ("2d", 172800, "2d"), ("500ms", 0.5, "0.5s"),
     (90, 90, "90s"), (0, 0, "0s"), ("1h 5m", 3900, "65m"), (dt.timedelta(1), 86400, "1d")],
)  # fmt: skip
def test_durations(text, seconds, shown):
    duration = parse_duration(text)
    assert (duration.total_seconds(), show_duration(duration)) == (seconds, shown)
    assert parse_duration(show_duration(duration)) == duration


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 incidents"), (1, "1 incident"), (2, "2 incidents"), (12000, "12,000 incidents")]
)
def test_numbers_of_things(number, shown):
    assert counted(number, "incident") == shown


@pytest.mark.parametrize("text", ["", "s", "5", "5x", "-5s", "1m-5s", None, [], "5 minutes"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("500 MB", 500_000_000), ("1GiB", 2**30), ("1.5k", 1500), ("10b", 10), (7, 7), ("0", 0)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 XB", "1ib", "many", None, [], True])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("expression", "merge"),
    [("count(*)", "sum"), ("count(amount)", "sum"), ("count_if(amount > 0)", "sum"),
     ("SUM(amount) FILTER (a = 'b')", "sum"), ("min(amount)", "min"), ("max(a + b)", "max"),
     ("avg(amount)", None), ("count(DISTINCT a)", None), ("a", None), ("sum(a) / 2", None),
     ("sum(a) OVER ()", None), ("median(a)", None), ("sum(DISTINCT a)", None)],
)  # fmt: skip
def test_measures_are_mergeable(expression, merge):
    if merge:
        assert merge_function(expression) == merge
    else:
        with pytest.raises(ValueError, match="is not mergeable"):
            merge_function(expression)


def test_the_columns_of_a_measure():
    assert columns_of("sum(a * \"B\") FILTER (c = 'd' AND a > 0)") == ["a", "B", "c"]


@pytest.mark.parametrize(
    ("apps", "url"),
    [("{}", "http://localhost:5006"), ("{host: 10.0.0.1, port: 80}", "http://10.0.0.1:80"), ("{url: 'https://x/y/'}", "https://x/y")],
)  # fmt: skip
def test_how_people_reach_the_pages(write, apps, url):
    assert load_config(write(BASE + f"apps: {apps}\n")).apps.base_url == url


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("count(*) FILTER (status = 'error')", {"status": ("error",)}),
        ("count(*) FILTER (kind = 'a' AND status IN ('x', 'y'))", {"kind": ("a",), "status": ("x", "y")}),
        ("count(*)", {}),
        ("count(*) FILTER (ok)", {}),
        ("count(*) FILTER (status <> 'ok')", {}),
        ("count(*) FILTER (status = 'a' OR kind = 'b')", {}),
        ("count(*) FILTER (status = 'a' AND n > 5)", {}),
        ("count(*) FILTER (code = 5)", {}),
        ("count(*) FILTER (a = 'x' AND a = 'y')", {}),
        ("count(*) FILTER (status = other)", {}),
        ("count(*) FILTER (status IN ('a', other))", {}),
        ("count(*) FILTER (status NOT IN ('a'))", {}),
    ],
)
def test_what_a_measure_says_of_its_events(expression, told):
    assert equalities(expression) == told
