"""The `ropewalk` command: reads the command line and configuration files, runs, and reports errors in one line."""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings  # type: ignore[attr-defined]
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from results.mirror import Mirror
from results.run_directory import RunDirectory
from results.run_lock import is_locked
from results.status import describe, read_status
from results.urls import without_password
from search.config import FINGERPRINT, SearchConfig
from search.evaluation_config import EvaluationConfig
from search.place import run_directory_path

DESCRIPTION = "Find the RoPE rescale factors that let a language model read beyond its training window."

RESUME = "--resume=true"


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
    return parser


def _build_evaluation_parser() -> ArgumentParser:
    parser = _DashedParser(
        exit_on_error=False, allow_abbrev=False, description="Let factors and formulas answer the same questions."
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these options; later options win")
    parser.add_class_arguments(EvaluationConfig)
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
    parser.add_argument("runs", type=str, nargs="+", help="run directories of searches and evaluations")
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
    """Run the command line and return its exit code: 0, or 2 where what the user gave cannot be used."""
    search = build_search_parser()
    parser = _DashedParser(prog="ropewalk", exit_on_error=False, allow_abbrev=False, description=DESCRIPTION)
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("search", search, help="search factors for a target length")
    commands.add_subcommand("evaluate", _build_evaluation_parser(), help="measure factors on tasks")
    commands.add_subcommand("status", _build_status_parser(), help="say how far a run is")
    commands.add_subcommand("compare", _build_comparison_parser(), help="print results across runs")
    commands.add_subcommand("report", _build_report_parser(), help="write an HTML file about runs")
    words = [_with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        if words[:1] == ["search"] and _is_resume(words):
            words[1:1] = _settings_of_the_run(words)
        options = parser.instantiate(parser.parse_args(words))
        if options.command == "status":
            _show_status(Path(options.status.run).expanduser().absolute())
        elif options.command == "evaluate":
            settings = {field.name: options.evaluate[field.name] for field in fields(EvaluationConfig)}
            _evaluate(EvaluationConfig(**settings))
        elif options.command == "compare":
            _compare(options.compare.runs, options.compare.format)
        elif options.command == "report":
            _write_report(options.report.runs, options.report.output)
        else:
            config = SearchConfig(**{field.name: options.search[field.name] for field in fields(SearchConfig)})
            _search(config)
    except argparse.ArgumentError as error:
        return _report(f"{error}{_known_options(search, str(error))}")
    except (ValueError, OSError, MemoryError, StorageInternalError, SQLAlchemyError) as error:
        return _report(_message(error))
    except KeyboardInterrupt:
        return _report("interrupted; what was measured so far is kept in the run directory")
    return 0


def _search(config: SearchConfig) -> None:
    from search.job import run_search  # imports torch: seconds that the help and a typing error should not take
    from workers.scorer import ClusterError

    _set_up_logging()
    try:
        run_search(config)
    except ClusterError as error:
        raise ValueError(str(error)) from error


def _evaluate(config: EvaluationConfig) -> None:
    from search.evaluation import run_evaluation  # imports torch

    _set_up_logging()
    run_evaluation(config)


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
    if word == "--resume":
        return RESUME  # a flag to its user; the parser wants a value
    name, equals, value = word.partition("=")
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
