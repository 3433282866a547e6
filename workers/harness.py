"""Tasks of lm-evaluation-harness, run by its own code on a loaded model; needs the extra `eval` once one is built."""

import hashlib
import logging
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, nullcontext, redirect_stdout
from difflib import get_close_matches
from functools import partialmethod
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm  # type: ignore[import-untyped]

from results.evaluation import HarnessScore
from results.measurement import candidate_key
from workers.evaluate import Contender
from workers.model import LoadedModel
from workers.scorer import failure_reason, is_out_of_memory

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

    from workers.window_switch import SwitchingLM

NUM_DRAWS = 1000
"""Of a bootstrapped standard error, which is then right to 2 % (1 / sqrt(2 * 1000)); the harness's own program takes a
hundred times as many."""

logger = logging.getLogger(__name__)


class RefusedTaskError(ValueError):
    """A task asks for what Ropewalk does not do; the message says all that its user needs."""


class Harness:
    """Some tasks with their data, and a model that answers them; everything is read when it is built."""

    def __init__(
        self,
        loaded: LoadedModel,
        names: Sequence[str],
        *,
        folder: Path | None,
        max_length: int,
        batch_size: int,
        limit: int | None = None,
        seed: int = 0,
        is_chat: bool = False,
    ) -> None:
        """Read tasks and data, and build every prompt.

        Args:
            loaded: The model.
            names: Tasks, groups or tags, as the harness names them; each is one task or many.
            folder: Task files (`*.yaml`, in folders below it too) that come before the harness's own of the same name.
                Paths in `dataset_kwargs` are taken from this folder: `dataset_path: json` with
                `dataset_kwargs: {data_files: questions.jsonl}` needs no hub. Functions that the files name are run.
            max_length: Most tokens that are read at once, for every contender alike.
            batch_size: Rows of a forward.
            limit: Most samples of a task; None for all.
            seed: Of examples before a question, of tasks that shuffle, and of texts that are drawn.
            is_chat: Whether prompts go through the tokenizer's chat template.

        Raises:
            ValueError: The extra is not installed; the folder or a task is not there, a task or its data cannot be
                read, or it needs pictures, runs code that a model wrote, or wants texts in a way that is not known.
        """
        if find_spec("lm_eval") is None:
            raise ValueError("the extra `eval` must be installed for --harness, got none. pip install 'ropewalk[eval]'")
        if is_chat and not getattr(loaded.tokenizer, "chat_template", None):
            raise ValueError("--prompt chat must have a tokenizer with a chat template, got none. Use --prompt base.")
        from workers.window_switch import SwitchingLM

        self._limit, self._seed, self._is_chat = limit, seed, is_chat
        with _quiet():
            self._model: SwitchingLM = SwitchingLM(loaded, max_length=max_length, batch_size=batch_size, seed=seed)
            with _seeded(seed):
                self._tasks, self._groups = _load(names, folder)
                self._fingerprint = self._digest(folder)

    @property
    def task_names(self) -> list[str]:
        """Single tasks, those of groups and tags too, in the order in which they were asked for."""
        return list(self._tasks)

    def fingerprint(self) -> str:
        """Return a hash of all prompts, right answers and versions, and of the task files in the folder."""
        return self._fingerprint

    def scores(self, contender: Contender, name: str) -> list[HarnessScore]:
        """Return what the harness gives a contender for a task.

        Args:
            contender: Its factors are used where more tokens are read than the original window has, elsewhere their
                short ones where there are any.
            name: One of `task_names`.

        Returns:
            One row for each metric and filter.

        Raises:
            MemoryError: A batch does not fit.
            ValueError: The task's own code fails, or a continuation is longer than what may be read.
        """
        from lm_eval.evaluator import evaluate

        task, model = self._tasks[name], self._model
        model.factors, model.num_cut, model.num_not_finite = contender.factors, 0, 0
        begun = perf_counter()
        with _quiet(), _seeded(self._seed), _failing(name):
            found = evaluate(
                model,
                {"tasks": {name: task}, "groups": {}},
                limit=self._limit,
                bootstrap_iters=NUM_DRAWS,
                log_samples=False,
                apply_chat_template=self._is_chat,
                fewshot_as_multiturn=True,
            )
        seconds = perf_counter() - begun
        if model.num_cut:
            logger.warning(
                "%s: %d rows are longer than %d tokens and were cut on the left; raise --lengths to read them whole",
                name,
                model.num_cut,
                model.max_length,
            )
        if model.num_not_finite:
            logger.warning(
                "%s, %s: %d rows have no finite logits: no score", contender.name, name, model.num_not_finite
            )
        figures: Mapping[str, object] = found["results"][name]
        return [
            HarnessScore(
                contender=contender.name,
                candidate=candidate_key(contender.factors),
                task=name,
                version=str(found["versions"][name]),
                metric=metric,
                value=None if model.num_not_finite else _finite(figures[metric]),
                stderr=None if model.num_not_finite else _finite(figures.get(_stderr(metric))),
                num_samples=found["n-samples"][name]["effective"],
                seconds=seconds,
            )
            for metric in figures
            if "," in metric and "_stderr," not in metric
        ]

    def group_scores(self, scores: Sequence[HarnessScore]) -> list[HarnessScore]:
        """Return what the harness makes of the scores of a group's tasks, for groups that say how.

        Args:
            scores: Of one contender, all tasks.

        Returns:
            One row for each group, metric and filter of whose tasks all have a score.
        """
        figures: dict[str, dict[str, Any]] = {}
        for score in scores:
            figure = figures.setdefault(score.task, {"sample_len": score.num_samples})
            figure[score.metric] = score.value
            figure[_stderr(score.metric)] = "N/A" if score.stderr is None else score.stderr
        found = []
        for name, group in self._groups.items():
            names = [task.task_name for task in group.get_all_tasks()]
            members = [score for score in scores if score.task in names]
            if any(score.value is None for score in members) or not set(names) <= set(figures):
                continue
            with _quiet():
                means: Mapping[str, Any] = group.aggregate(figures)
            found += [
                HarnessScore(
                    contender=members[0].contender,
                    candidate=members[0].candidate,
                    task=name,
                    version=str(group.version),
                    metric=metric,
                    value=_finite(means[metric]),
                    stderr=_finite(means.get(_stderr(metric))),
                    num_samples=means["sample_len"],
                    seconds=sum({score.task: score.seconds for score in members}.values()),
                )
                for metric in means
                if "," in metric and "_stderr," not in metric
            ]
        return found

    def _digest(self, folder: Path | None) -> str:
        """Build every task's prompts, and return the hash of what was built, and of the files that say how to score."""
        digest = hashlib.sha256()
        if folder is not None:
            for path in sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".py")):
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
        for name, task in self._tasks.items():
            with _failing(name):
                _check(name, task, self._model)
                if task.get_config("num_fewshot") is None:
                    task.set_config("num_fewshot", 0)  # as the harness's own program does
                task.set_fewshot_seed(self._seed)
                task.build_all_requests(
                    limit=self._limit,
                    apply_chat_template=self._is_chat,
                    fewshot_as_multiturn=True,
                    chat_template=self._model.apply_chat_template if self._is_chat else None,
                )
                digest.update(f"{name} {task.VERSION} {task.OUTPUT_TYPE} {task.get_config('repeats')}".encode())
                for key in ("metric_list", "filter_list"):
                    digest.update(_written(task.get_config(key)).encode())
                for instance in task.instances:
                    digest.update(f"{_written(instance.args)} {_written(instance.doc)}".encode())
        return digest.hexdigest()


def _load(names: Sequence[str], folder: Path | None) -> tuple[dict[str, "Task"], dict[str, "Group"]]:
    """Return tasks and groups by name."""
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--harness-tasks must be a folder of task files, got {folder}. Correct it.")
    if folder is not None:
        _check_files(folder)
    manager = _manager(names, folder)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        near = get_close_matches(unknown[0], manager.all_tasks, n=5)
        raise ValueError(
            f"--harness must name tasks of lm-evaluation-harness or of a readable file in --harness-tasks, got "
            f"{', '.join(unknown)}. {'Near ones: ' + ', '.join(near) if near else 'None is near'}. Correct it, or give "
            "--harness-tasks the folder of its file."
        )
    found: dict[str, Any] = {"tasks": {}, "groups": {}}
    with chdir(folder) if folder is not None else nullcontext():
        for name in dict.fromkeys(names):
            with _failing(name, of="read with its data"):
                part = manager.load([name])
            for kind, into in found.items():
                into.update(part.get(kind, {}))
    return found["tasks"], found["groups"]


def _check_files(folder: Path) -> None:
    """Refuse a task file that is no YAML: the harness passes it over."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            for _ in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
                pass
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} must be YAML, got: {' '.join(str(error).split())}. Correct it.") from error


def _manager(names: Sequence[str], folder: Path | None) -> "TaskManager":
    """Return an index of task files: of the folder alone where that is enough, since the harness's own take seconds."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if all(_is_whole(name, manager) for name in names):
            return manager
    return TaskManager(include_path=None if folder is None else str(folder))


def _is_whole(name: object, manager: "TaskManager") -> bool:
    """Return whether a task, or all that a group or tag is made of, is in the index."""
    if name in manager.all_subtasks:
        return True
    if not isinstance(name, str) or name not in manager.task_index:
        return False
    entry = manager.task_index[name]
    members = (entry.cfg or {}).get("task") if name in manager.all_groups else sorted(entry.tags)
    return isinstance(members, list) and all(_is_whole(member, manager) for member in members)


def _check(name: str, task: "Task", model: "SwitchingLM") -> None:
    """Refuse what would fail after hours."""
    if getattr(task, "UNSAFE_CODE", False):
        raise RefusedTaskError(
            f"a task must not run code that the model wrote, got {name}. Run it in the harness, in a sandbox."
        )
    if getattr(task, "MULTIMODAL", False):
        raise RefusedTaskError(f"a task must be of text alone, got {name}. Drop it.")
    if task.OUTPUT_TYPE == "generate_until":
        model.writing(task.get_config("generation_kwargs") or {})


@contextmanager
def _failing(name: str, of: str = "measured") -> Iterator[None]:
    """Say in one line what went wrong in a task's own code."""
    try:
        yield
    except RefusedTaskError:
        raise
    except Exception as error:  # task files run code of their own, and libraries raise what they like
        if is_out_of_memory(error):
            raise MemoryError(
                f"memory must hold a batch of the harness task {name}, got: {failure_reason(error)}. Lower "
                "--batch-size or --lengths."
            ) from error
        logger.debug("the harness task %s", name, exc_info=True)
        hint = "Correct its file."
        if isinstance(error, OSError):
            hint = "Without the hub, its file must name local data: see --harness-tasks."
        told = " ".join(f"{type(error).__name__}: {error}".split())  # libraries' messages have lines
        raise ValueError(f"the harness task {name} must be one that can be {of}, got {told}. {hint}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's log to errors, its bars and prints off, its bootstraps in this process: it may hold a GPU."""
    log = logging.getLogger("lm_eval")
    level, pools = log.level, os.environ.get("DISABLE_MULTIPROC")
    log.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    show = tqdm.__init__  # not all of its bars can be disabled by a setting
    tqdm.__init__ = partialmethod(show, disable=True)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        tqdm.__init__ = show
        log.setLevel(level)
        if pools is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = pools


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which some tasks shuffle by, and give them back as they were."""
    with ExitStack() as stack:
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - see above
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - see above
        yield


def _written(value: object) -> str:
    """Return a text that is the same in every process: functions and objects without where they lie."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _stderr(metric: str) -> str:
    name, _, rest = metric.partition(",")
    return f"{name}_stderr,{rest}"


def _finite(value: object) -> float | None:
    is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]
