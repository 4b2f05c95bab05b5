"""Settings of a training run: defaults, a YAML file, and options that override it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from .schema import Field
from .staging import staged_file

Labels = Literal["and", "drop", "raw"]
TableOptimizer = Literal["lazy_adam", "adam"]
Schedule = Literal["constant", "linear", "cosine"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a network and its training depend on besides the data.

    From the paper: `dim`, `hidden`, `betas` and `eps` of Adam. The paper leaves open the batch
    size, the learning rate, the epochs and the initialization: those defaults are this package's.
    `table_optimizer` "lazy_adam" updates the rows a batch touches and is a deviation from the
    paper's Adam; "adam" is the dense one, which moves every row at every step.
    """

    dim: int = 18
    """Embedding dimension D of the tables."""
    dims: dict[str, int] = {}
    """Embedding dimension of single tables by name; a table has its field's name unless shared."""
    rows: dict[str, str] = {}
    """Hashed tables by name, with their rows: {item: "hash:2**20"}; the others know every id."""
    hidden: tuple[int, ...] = (360, 200, 80)
    """Widths of the hidden layers of a tower."""
    init_std: float = 0.01
    """Standard deviation of the tables' normal initialization."""
    min_count: int = 5
    """Occurrences in the training set from which a feature id gets a row of its own. At 1 no
    training impression has an unknown id: their row is never trained, and a new id adds noise."""
    batch_size: int = 1024
    """Impressions per step."""
    group_limit: int | None = None
    """Impressions of one common row that stay together when shuffled; null: all of them."""
    labels: Labels = "and"
    """What a conversion without a click means in training: no conversion, left out, conversion."""
    epochs: int = 1
    """Passes over the training set."""
    lr: float = 1e-3
    """Learning rate of the tables and of the towers."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    table_optimizer: TableOptimizer = "lazy_adam"
    warmup_steps: int = 0
    """Steps over which the learning rate rises from lr / warmup_steps to lr."""
    schedule: Schedule = "constant"
    """How the learning rate falls from the end of the warm-up to the end of the last epoch."""
    final_lr_share: float = 0.0
    """Share of lr that a linear or cosine schedule ends with."""
    evaluation_batch_size: int = 8192
    """Impressions per batch of an evaluation; does not change its result."""
    seed: int = 0
    """Seeds the initialization and the order of the impressions."""

    def __post_init__(self) -> None:
        for name in ("dim", "min_count", "batch_size", "epochs", "evaluation_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for table, dim in self.dims.items():
            if not 1 <= dim <= 256:
                raise ValueError(f"dims.{table}: expected 1 to 256, got {dim}")
        for table, rows in self.rows.items():
            Field(table, rows=rows)
        if self.group_limit is not None and self.group_limit < 1:
            raise ValueError(f"group_limit: expected at least 1 or null, got {self.group_limit}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden: expected widths of at least 1, got {list(self.hidden)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: expected a finite number above 0, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {list(self.betas)}")
        for name in ("eps", "init_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}: expected a finite number of at least 0, got {getattr(self, name)}"
                )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: expected at least 0, got {self.warmup_steps}")
        if not 0 <= self.final_lr_share <= 1:
            raise ValueError(
                f"final_lr_share: expected a share from 0 to 1, got {self.final_lr_share}"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 <= seed < 2**63, got {self.seed}")


def settings_before() -> dict[str, Any]:
    """Returns what each setting stood for before it could be set.

    A comparison that an earlier version began lacks the settings that came later. They all came
    with a default that left things as they were; one whose default changed afterwards stands here
    with its first.

    >>> settings_before()["min_count"]
    1
    """
    found: dict[str, Any] = msgspec.to_builtins(Settings(min_count=1))
    return found


TASKS = ("ctr", "cvr", "ctcvr")
METRICS = {"auc": 1, "log_loss": -1, "brier": -1, "calibration_error": -1}
"""What early stopping can watch: 1 where more is better, -1 where less is."""


class EarlyStopping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ends a training that no longer improves; it keeps the parameters of the best evaluation."""

    patience: int = 1
    """Evaluations without an improvement after which training ends."""
    metric: str | None = None
    """For example cvr.auc; null: the log loss of ctcvr, cvr or ctr, the first that there is. Of a
    chain with the labels click and buy: click.auc, buy.auc or buy.all.auc; null: the last's."""
    min_delta: float = 0.0
    """What counts as an improvement is more than this."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience: expected at least 1, got {self.patience}")
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta: expected a number of at least 0, got {self.min_delta}")
        task, _, name = (self.metric or "cvr.auc").rpartition(".")
        if not task or name not in METRICS:
            known = ", ".join(METRICS)
            raise ValueError(
                f"metric: expected ctr, cvr or ctcvr, a point and one of {known}, "
                f"got {self.metric!r}"
            )


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `esmm-fast train` was asked for; saved resolved as RUN/config.yaml."""

    train: str
    """Dataset directory that is trained on."""
    valid: str | None = None
    """Dataset directory that is evaluated after each epoch."""
    method: str = "esmm"
    evaluate_steps: int | None = None
    """Steps from one evaluation of `valid` to the next within an epoch; null: none."""
    early_stopping: EarlyStopping | None = None
    """Off by default."""
    checkpoint_minutes: float = 10.0
    """Minutes from one checkpoint to the next; 0: one after every step."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, the newest ones."""
    tensorboard: bool = False
    """Also write the metrics as TensorBoard events, into RUN/tensorboard."""
    settings: Settings = Settings()

    def __post_init__(self) -> None:
        for name in ("evaluate_steps", "keep_checkpoints"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"checkpoint_minutes: expected a number of at least 0, "
                f"got {self.checkpoint_minutes}"
            )
        metric = self.early_stopping and self.early_stopping.metric
        if metric and self.method != "chain" and metric.rpartition(".")[0] not in TASKS:
            raise ValueError(
                f"early_stopping: metric: expected ctr, cvr or ctcvr, a point and a metric, "
                f"got {metric!r}"
            )
        for name in ("evaluate_steps", "early_stopping"):
            if getattr(self, name) is not None and self.valid is None:
                raise ValueError(f"{name}: expected a validation set with it (valid: DATASET)")


T = TypeVar("T", bound=msgspec.Struct)


def load(path: str | Path) -> dict[str, Any]:
    """Returns the mapping of a YAML file.

    Raises:
        ValueError: Where it is no YAML file, has no mapping at its top, or a key twice.
        PermissionError: Where it may not be read.
    """
    import yaml

    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a YAML file, got a directory")
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _loader())
    except PermissionError as error:
        raise PermissionError(f"{path}: cannot be read: no permission") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        no_yaml = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        raise ValueError(f"{path}:{line}: {no_yaml}{error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping at the top, got {type(content).__name__}")
    return content


def _loader() -> type[Any]:
    """Returns YAML's safe loader, which here refuses a key that stands twice in a mapping."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            lines: dict[Any, int] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                name, mark = self.construct_object(key, deep=True), key.start_mark
                if name in lines:
                    problem = f"{name}: expected each key once, it stands in line {lines[name]} too"
                    raise yaml.constructor.ConstructorError(None, None, problem, mark)
                lines[name] = mark.line + 1
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    return Loader


def resolve(
    kind: type[T],
    content: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    source: str | Path | None = None,
) -> T:
    """Returns `kind` made of `content`, with the overrides that are not None, and checked.

    A key of `overrides` can reach into a nested struct with a dot. `source` is the file that
    `content` was read from, for messages.

    Raises:
        ValueError: Naming the key, what was expected and what came; for an unknown key with the
            nearest valid one.

    >>> resolve(RunConfig, {"train": "data"}, {"settings.lr": 0.01}).settings.lr
    0.01
    >>> resolve(RunConfig, {"train": "data", "methid": "base"})
    Traceback (most recent call last):
    ValueError: methid: unknown key; did you mean 'method'?
    >>> resolve(RunConfig, {"train": "data", "lr": 0.1}, source="run.yaml")
    Traceback (most recent call last):
    ValueError: run.yaml: lr: unknown key; did you mean 'settings.lr'?
    """
    merged = msgspec.to_builtins(content)
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        *parents, last = key.split(".")
        at = merged
        for parent in parents:
            if at.get(parent) is None:
                at[parent] = {}
            at = at[parent]
            if not isinstance(at, dict):
                raise ValueError(f"{parent}: expected a mapping, got {at!r}")
        at[last] = value
    try:
        # Not strict: YAML 1.1 reads 1e-3, without a point, as a string.
        return msgspec.convert(merged, kind, strict=False)
    except msgspec.ValidationError as error:
        message = _explained(kind, str(error), merged)
        given = {key for key, value in (overrides or {}).items() if value is not None}
        of_option = any(key.rpartition(".")[2] in re.split(r"\W+", message) for key in given)
        where = f"{source}: " if source and not of_option else ""
        raise ValueError(where + message) from error


def saved(run: str | Path) -> dict[str, Any]:
    """Returns the content of a run's config.yaml.

    Raises:
        ValueError: If it is no run.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run}: expected a run, found no config.yaml")
    return load(path)


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one mapping laid over another; mappings inside are laid over each other too.

    >>> over({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 4}})
    {'a': 1, 'b': {'c': 2, 'd': 4}}
    """
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            both[key] = over(below[key], above[key])
    return both


def differences(a: msgspec.Struct, b: msgspec.Struct) -> dict[str, tuple[Any, Any]]:
    """Returns the keys in which two configs differ, with both values; inner keys with a dot.

    >>> differences(Settings(), Settings(lr=0.1))
    {'lr': (0.001, 0.1)}
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in a.__struct_fields__:
        there, here = getattr(a, name), getattr(b, name)
        if isinstance(there, msgspec.Struct) and isinstance(here, msgspec.Struct):
            inner = differences(there, here)
            found |= {f"{name}.{key}": values for key, values in inner.items()}
        elif there != here:
            found[name] = (there, here)
    return found


def save(config: msgspec.Struct, path: str | Path) -> None:
    """Writes a config as YAML, every default spelled out."""
    import yaml

    content = yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)
    with staged_file(Path(path)) as staged:
        staged.write_text(content, encoding="utf-8")


def _structs_in(types: tuple[Any, ...]) -> Any:
    """Returns the struct among the types of a list or union; else the first of them."""
    flat = [t for outer in types for t in (outer, *get_args(outer))]
    structs = [t for t in flat if hasattr(t, "__struct_fields__")]
    return next(iter(structs or types), None)


_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
"""What msgspec calls a type, and what a person does."""


def _type_expected(expected: str, more: str, keys: list[str], kind: type[msgspec.Struct]) -> str:
    """Returns in words what msgspec expected at a place; a list with the default as example."""
    words = " or ".join(_WORDS.get(name, name) for name in expected.split(" | ")) + more
    default: Any = kind
    for key in keys:
        fields = msgspec.structs.fields(default) if hasattr(default, "__struct_fields__") else ()
        default = next((field.default for field in fields if field.name == key), None)
    return f"{words} like {list(default)}" if isinstance(default, tuple) and default else words


def _value_at(content: Any, keys: list[str]) -> Any:
    for key in keys:
        name, *places = re.split(r"\[|\]\[?", key.rstrip("]"))
        content = content[name] if isinstance(content, Mapping) else content
        for place in places:
            if place.isdigit() and isinstance(content, list | tuple):
                content = content[int(place)]
    return content


def _explained(kind: type[msgspec.Struct], message: str, content: Any) -> str:
    """Returns msgspec's message with the key first, and for an unknown key the nearest one."""
    reason, _, place = message.replace("[...]", "").partition(" - at ")
    if place.startswith("`key` in "):
        place = place.removeprefix("`key` in ")
        reason += "; names that look like numbers need quotes, YAML reads 109_14 as 10914"
    keys = [key for key in re.split(r"[.`$]+", place) if key]
    inner: Any = kind
    for key in keys:
        fields = msgspec.structs.fields(inner) if hasattr(inner, "__struct_fields__") else ()
        name = key.partition("[")[0]
        inner = next((field.type for field in fields if field.name == name), None)
        for _ in range(key.count("[")):  # "fields[3]": what the list holds
            inner = _structs_in(get_args(inner))
    place = ".".join(keys)
    if missing := re.fullmatch(r"Object missing required field `(.+)`", reason):
        return f"{'.'.join([*keys, missing[1]])}: expected it, got none"
    if reason.startswith("Invalid enum value"):
        known = [str(a) for a in get_args(inner) or ()]
        known = [str(a) for t in get_args(inner) for a in get_args(t)] or known
        return f"{place}: expected one of {', '.join(known)}, got {_value_at(content, keys)!r}"
    if wrong := re.fullmatch(r"Expected `([^`]+)`( of .+)?, got .+", reason):
        expected = _type_expected(wrong[1], wrong[2] or "", keys, kind)
        return f"{place or 'it'}: expected {expected}, got {_value_at(content, keys)!r}"
    if unknown := re.search(r"contains unknown field `(.+)`", reason):
        kind = inner if hasattr(inner, "__struct_fields__") else _structs_in(get_args(inner))
        fields = msgspec.structs.fields(kind)
        names = [field.name for field in fields]
        near = [
            f"{field.name}.{unknown[1]}"
            for field in fields
            for inner in [_structs_in((field.type,))]
            if unknown[1] in getattr(inner, "__struct_fields__", ())
        ] or difflib.get_close_matches(unknown[1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
        return f"{'.'.join([*keys, unknown[1]])}: unknown key; {hint}"
    return f"{'.'.join(keys)}: {reason}" if keys else reason
