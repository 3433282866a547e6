"""The `ropewalk` command: reads the command line and configuration files, runs, and reports errors in one line."""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from results.mirror import Mirror
from results.run_directory import RunDirectory
from results.run_lock import is_locked
from results.status import describe, read_status
from results.urls import without_password
from search.config import FINGERPRINT, SearchConfig
from search.evaluation.config import EvaluationConfig
from search.export_config import ExportConfig
from search.finetune.config import FinetuneConfig
from search.import_config import ImportConfig
from search.place import run_directory_path
from search.verify_config import VerifyConfig

DESCRIPTION = "Find the RoPE rescale factors that let a language model read beyond its training window."

Config = TypeVar("Config", SearchConfig, EvaluationConfig, FinetuneConfig, ExportConfig, ImportConfig, VerifyConfig)

RESUME = "--resume=true"
FLAGS = ("--force", "--in-place", "--resume")
"""Options that are flags to their user; the parser wants a value."""


class _DashedParser(ArgumentParser):
    """Spells options with dashes in the help; configuration files keep underscores."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        return re.sub(r"--[\w.]+", lambda match: match[0].replace("_", "-"), super().format_help(formatter))


def build_search_parser() -> ArgumentParser:
    """Return the parser of `ropewalk search`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Search factors and measure them beside every formula."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these options; later options win")
    parser.add_class_arguments(SearchConfig)
    parser.add_argument(
        "--then_finetune",
        type=str,
        default=None,
        help="YAML file of `ropewalk finetune`, which follows with the factors",
    )
    return parser


def _build_evaluation_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Let factors and formulas answer the same questions."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these options; later options win")
    parser.add_class_arguments(EvaluationConfig)
    return parser


def build_finetuning_parser() -> ArgumentParser:
    """Return the parser of `ropewalk finetune`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _DashedParser(
        exit_on_error=False,
        allow_abbrev=False,
        description="Train a model on both windows, and measure it before and after.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these options; later options win")
    parser.add_class_arguments(FinetuneConfig)
    return parser


def _build_export_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Write what a serving engine reads, and what to type."
    )
    parser.add_class_arguments(ExportConfig)
    return parser


def _build_import_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Read the factors of a model or list that exists."
    )
    parser.add_argument("source", type=str, help="config.json, model folder, .gguf file, list, or published:NAME")
    parser.add_class_arguments(ImportConfig, skip={"source"})
    return parser


def _build_verification_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False,
        allow_abbrev=False,
        description="Compare what engines compute from an export, by their own code, with Ropewalk.",
    )
    parser.add_class_arguments(VerifyConfig)
    return parser


def _build_status_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Say how far a run is, and whether its driver lives."
    )
    parser.add_argument("run", type=str, help="run directory")
    return parser


def _build_comparison_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Print the results of finished runs side by side."
    )
    parser.add_argument("runs", type=str, nargs="+", help="run directories of searches, evaluations and fine-tunings")
    parser.add_argument("--format", type=Literal["table", "csv", "json"], default="table", help="how it is written")
    return parser


def _build_report_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Write one HTML file about runs, finished or not."
    )
    parser.add_argument("runs", type=str, nargs="+", help="run directories")
    parser.add_argument("--output", type=str, default="report.html", help="file to write (default: report.html)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 where an engine rotates otherwise, 2 for unusable input."""
    parsers = {
        "search": (build_search_parser(), "search factors for a target length"),
        "evaluate": (_build_evaluation_parser(), "measure factors on tasks"),
        "finetune": (build_finetuning_parser(), "train a model with factors"),
        "export": (_build_export_parser(), "write factors for a serving engine"),
        "import": (_build_import_parser(), "read factors that exist"),
        "verify": (_build_verification_parser(), "check that engines rotate alike"),
        "status": (_build_status_parser(), "say how far a run is"),
        "compare": (_build_comparison_parser(), "print results across runs"),
        "report": (_build_report_parser(), "write an HTML file about runs"),
    }
    parser = _DashedParser(prog="ropewalk", exit_on_error=False, allow_abbrev=False, description=DESCRIPTION)
    commands = parser.add_subcommands(dest="command")
    for name, (command, explained) in parsers.items():
        commands.add_subcommand(name, command, help=explained)
    words = [_with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        if words[:1] == ["search"] and _is_resume(words):
            words[1:1] = _settings_of_the_run(words)
        options = parser.instantiate(parser.parse_args(words))
        return _run(options)
    except argparse.ArgumentError as error:
        command, _ = parsers.get(words[0] if words else "", parsers["search"])
        return _report(f"{error}{_known_options(command, str(error))}")
    except (ValueError, OSError, MemoryError, StorageInternalError, SQLAlchemyError) as error:
        return _report(_message(error))
    except KeyboardInterrupt:
        return _report("interrupted; what was measured so far is kept in the run directory")


def _run(options: Namespace) -> int:
    given = options[options.command]

    def config_of(kind: type[Config]) -> Config:
        return kind(**{field.name: given[field.name] for field in fields(kind)})

    match options.command:
        case "search":
            _search(config_of(SearchConfig), given.then_finetune)
        case "evaluate":
            _evaluate(config_of(EvaluationConfig))
        case "finetune":
            _finetune(config_of(FinetuneConfig))
        case "export":
            _export(config_of(ExportConfig))
        case "import":
            _import(config_of(ImportConfig))
        case "verify":
            return _verify(config_of(VerifyConfig))
        case "status":
            _show_status(Path(given.run).expanduser().absolute())
        case "compare":
            _compare(given.runs, given.format)
        case "report":
            _write_report(given.runs, given.output)
    return 0


def _search(config: SearchConfig, then_finetune: str | None) -> None:
    after = None if then_finetune is None else _finetuning_after(config, then_finetune)
    from search.job import run_search  # imports torch: seconds that the help and a typing error should not take
    from workers.scorer import ClusterError

    _set_up_logging()
    try:
        summary = run_search(config)
    except ClusterError as error:
        raise ValueError(str(error)) from error
    if after is not None:
        run = summary.run_directory
        _finetune(replace(after, factors=run, run_dir=str(Path(run) / "finetune")))


def _finetuning_after(config: SearchConfig, path: str) -> FinetuneConfig:
    """Return the fine-tuning that follows a search, whose factors are not there yet; a faulty one is refused now."""
    if not Path(path).is_file():
        raise ValueError(f"--then-finetune must be a YAML file, got {path}, which is none. Check the path.")
    parser = build_finetuning_parser()
    words = [f"--model={config.model}", f"--seed={config.seed}", f"--config={path}", "--factors=of the search"]
    given = parser.instantiate(parser.parse_args(words))
    found = FinetuneConfig(**{field.name: given[field.name] for field in fields(FinetuneConfig)})
    missing = [source for source in found.sources.values() if not Path(source).exists()]
    if missing:
        raise ValueError(f"the data of {path} must exist, got {missing[0]}, which does not. Check the path.")
    return found


def _evaluate(config: EvaluationConfig) -> None:
    from search.evaluation.run import run_evaluation  # imports torch

    _set_up_logging()
    run_evaluation(config)


def _finetune(config: FinetuneConfig) -> None:
    from search.finetune.run import run_finetune  # imports torch
    from workers.scorer import ClusterError

    _set_up_logging()
    try:
        run_finetune(config)
    except ClusterError as error:
        raise ValueError(str(error)) from error


def _export(config: ExportConfig) -> None:
    from search.export_command import run_export

    run_export(config)


def _import(config: ImportConfig) -> None:
    from search.import_command import run_import

    run_import(config)


def _verify(config: VerifyConfig) -> int:
    from search.verify_command import run_verification  # imports torch

    return run_verification(config)


def _show_status(run: Path) -> None:
    sys.stdout.write(describe(read_status(run), alive=is_locked(run), path=run) + "\n")


def _compare(runs: Sequence[str], kind: Literal["table", "csv", "json"]) -> None:
    from results.comparison import compare, written  # imports pandas: time that a typing error should not take

    paths = [Path(run).expanduser().absolute() for run in dict.fromkeys(runs)]
    sys.stdout.write(written(compare(paths), kind))


def _write_report(runs: Sequence[str], output: str) -> None:
    from search.report_command import write_run_report  # imports pandas: time that a typing error should not take

    write_run_report(runs, output)


def _is_resume(words: Sequence[str]) -> bool:
    return any(word.lower() == RESUME for word in words)


def _settings_of_the_run(words: Sequence[str]) -> list[str]:
    """Return options that read the configuration of the run to take up, to which the user's own are added."""
    run_dir, mirror = _value_of("--run_dir", words), _value_of("--mirror", words)
    if run_dir is None:
        return []  # the configuration itself says what is missing
    path = run_directory_path(run_dir, now=datetime.now(UTC), working_dir=Path.cwd(), home=Path.home())
    if mirror is not None and not RunDirectory.holds_run(path):
        Mirror(mirror).fetch(path)
    settings = dict(RunDirectory.read_config(path)) | {"run_dir": str(path)}
    settings.pop(FINGERPRINT, None)
    return [f"--config={yaml.safe_dump(settings)}"]


def _value_of(name: str, words: Sequence[str]) -> str | None:
    """Return the last value that the words give to an option."""
    following = [after for word, after in pairwise(words) if word == name]
    joined = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return next(iter([*reversed(joined), *reversed(following)]), None)


def _set_up_logging() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for package in ("search", "workers", "results", "needles"):
        logging.getLogger(package).setLevel(logging.INFO)


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    if word in FLAGS:
        equals, value = "=", "true"
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word


def _known_options(parser: ArgumentParser, message: str) -> str:
    if "does not accept option" not in message and "unrecognized arguments" not in message:
        return ""
    known = sorted(set(parser.get_defaults().keys()) - {"config"})
    return f"; known options: {', '.join(known)}"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of the run directory must have room, got: {os.strerror(error.errno)}. Free some and take the "
            "run up with --resume; what was measured is kept."
        )
    return str(error) or type(error).__name__


def _report(message: str) -> int:
    sys.stderr.write(f"ropewalk: error: {without_password(' '.join(message.split()))}\n")
    return 2
